"""Ranks in processes that hold a part of every network: together they do what one process does."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from musicrl.algorithms.config import AlgorithmConfig
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.flat import digest
from musicrl.ranks import find_store, open_store
from musicrl.sampler.sampling import SamplingConfig
from musicrl.sharding import Sharded, join_sharded
from musicrl.types import Experience
from musicrl.update_config import UpdateConfig
from tests.sharing import (
    GROUPS,
    PAPER,
    PPO,
    SAMPLING,
    experience,
    networks,
    new_update,
    small_policy,
)

HOST = "127.0.0.1"
Work = Callable[..., Any]


Pools = tuple[ProcessPoolExecutor, ProcessPoolExecutor]


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    """Two processes, for as many tests as there are: each is one rank for life, as learners are. (A
    process that changes its rank gets parts of the other one from what torch's DTensor remembers.)"""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as first, ProcessPoolExecutor(1, spawn) as second:
        yield first, second


def together(pools: Pools, work: Work, *args: Any, timeout: float = 60) -> list[Any]:
    """What each of two ranks' `work(ranks, *args)` returns."""
    return [future.result(timeout=120) for future in begin(pools, work, *args, timeout=timeout)]


def begin(pools: Pools, work: Work, *args: Any, timeout: float) -> list[Future[Any]]:
    store = open_store(HOST, timeout)
    futures = [
        pool.submit(as_rank, rank, store.port, timeout, work, *args)
        for rank, pool in enumerate(pools)
    ]
    futures[0].add_done_callback(lambda _: store)  # it lives as long
    return futures


def as_rank(rank: int, port: int, timeout: float, work: Work, *args: Any) -> Any:
    torch.set_num_threads(1)
    ranks = join_sharded(
        find_store(HOST, port, timeout),
        rank=rank,
        size=2,
        host=HOST,
        timeout_seconds=timeout,
        device=torch.device("cpu"),
    )
    try:
        return work(ranks, *args)
    finally:
        dist.destroy_process_group()


def delayed_policy() -> DelayedLM:
    torch.manual_seed(0)
    return DelayedLM(
        DelayedConfig(
            vocab=4,
            num_codebooks=3,
            num_steps=4,
            condition_levels=2,
            condition_vocab=6,
            width=16,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            mlp_width=32,
        )
    )


def delayed(drawn: Experience) -> Experience:
    """The same with the special token, which is certain, in the cells that hold no frame."""
    step, stream = np.arange(4)[:, None], np.arange(3)
    is_empty = (step < stream) | (step > stream + 1)
    tokens = np.where(is_empty, 4, drawn.rollouts.tokens).astype(np.int16)
    logprobs = np.where(is_empty, 0, drawn.rollouts.logprobs).astype(np.float32)
    return replace(drawn, rollouts=replace(drawn.rollouts, tokens=tokens, logprobs=logprobs))


def distance(state: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert list(state) == list(other)
    return max(float((tensor - other[name]).abs().max()) for name, tensor in state.items())


def distance_from_alone(
    ranks: Sharded,
    policy: nn.Module,
    algorithm: AlgorithmConfig,
    settings: UpdateConfig,
    sampling: SamplingConfig = SAMPLING,
) -> tuple[float, float, str]:
    """Ten updates of both: the largest distance of weights and of figures from those of one process,
    and the digest of the weights."""
    start = copy.deepcopy(policy).state_dict()
    alone = new_update(copy.deepcopy(policy), algorithm, settings, sampling=sampling)
    update = new_update(policy, algorithm, settings, ranks, sampling)
    apart = 0.0
    for version in range(10):
        drawn = experience(version, num_samples=8)
        drawn = delayed(drawn) if isinstance(policy, DelayedLM) else drawn
        figures, same = (one.step([drawn]) for one in (alone, update))
        assert figures.keys() == same.keys()
        apart = max(apart, *(abs(figures[k] - same[k]) / (1 + abs(figures[k])) for k in figures))
    found = networks(update)
    moved = {name: found[f"policy.{name}"] for name in start}
    assert distance(start, moved) > 1e-3
    weights = torch.cat([tensor.flatten() for tensor in found.values()])
    return distance(networks(alone), found), apart, digest(weights.float().numpy())


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (PAPER, UpdateConfig(microbatch_samples=3)),
        (GROUPS, UpdateConfig(microbatch_tokens=24, value_warmup_steps=2)),
        (PPO, UpdateConfig(minibatches=4, microbatch_samples=1)),
        (PAPER, UpdateConfig(muon_learning_rate=1e-3, parts=("trunk.blocks", "head"))),
    ],
    ids=["paper", "groups", "ppo", "muon"],
)
def test_two_parts_end_where_one_process_ends(
    pools: Pools, algorithm: AlgorithmConfig, settings: UpdateConfig
) -> None:
    """Seven clips, of which a rank takes four in two passes and the other three in one; ppo's last
    minibatch, of one clip, leaves a rank nothing."""
    settings = replace(settings, learning_rate=1e-3)
    found = together(pools, distance_from_alone, small_policy().double(), algorithm, settings)
    assert found[0][2] == found[1][2]
    for weights, figures, _ in found:
        assert weights < 1e-5
        assert figures < 1e-5


def test_guidance_recomputed_layers_and_attention_to_prompts(pools: Pools) -> None:
    """Every layer is called twice before its gradient, run again for it, and makes the prompts' keys."""
    settings = UpdateConfig(learning_rate=1e-3, microbatch_samples=2, gradient_checkpointing=True)
    guided = SamplingConfig(guidance=2.0)
    policy = delayed_policy()
    for weights, figures, _ in together(
        pools, distance_from_alone, policy, GROUPS, settings, guided
    ):
        assert weights < 1e-5
        assert figures < 1e-5
