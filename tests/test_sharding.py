"""Ranks in processes that hold a part of every network: together they do what one process does."""

from __future__ import annotations

import copy
import json
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
from musicrl.update import PolicyUpdate
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
    return distance(networks(alone), found), apart, digest([weights.float().numpy()])


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


def state_digest(update: PolicyUpdate, *parts: str) -> str:
    """Of what a checkpoint would hold of some parts (none named: all). Ranks ask together."""
    tensors, _ = update.state_dict()
    kept = [t for name, t in tensors.items() if not parts or name.split("/")[0] in parts]
    return digest(torch.cat([tensor.flatten().double() for tensor in kept]).float().numpy())


def state_of(ranks: Sharded, policy: nn.Module) -> str:
    return state_digest(new_update(policy, PAPER, UpdateConfig(), ranks))


def resumed(ranks: Sharded, policy: nn.Module, settings: UpdateConfig) -> tuple[str, str]:
    """What six updates end with in one go, and with another process's networks after three."""
    start = copy.deepcopy(policy)
    update = new_update(policy, PAPER, settings, ranks)
    for version in range(3):
        update.step([experience(version)])
    tensors, numbers = update.state_dict()
    other = new_update(start, PAPER, settings, ranks)
    other.load_state_dict(tensors, json.loads(json.dumps(numbers)))
    for version in range(3, 6):
        for one in (update, other):
            one.step([experience(version)])
    return state_digest(update), state_digest(other)


def test_parts_go_on_from_a_checkpoint_bit_for_bit(pools: Pools) -> None:
    """Of the policy, by Muon and Adam, and of the value network."""
    settings = UpdateConfig(learning_rate=1e-3, muon_learning_rate=1e-3, microbatch_samples=3)
    found = {state for pair in together(pools, resumed, small_policy(), settings) for state in pair}
    assert len(found) == 1


def held(ranks: Sharded, policy: nn.Module, settings: UpdateConfig) -> list[tuple[str, str]]:
    """The policy and the value network after none, one, two and three updates."""
    update = new_update(policy, PAPER, settings, ranks)
    found = []
    for version in range(4):
        policy_now, value_now = (state_digest(update, part) for part in ("policy", "value"))
        found.append((policy_now, value_now))
        update.step([experience(version)])
    return found


def test_parts_hold_the_policy_while_the_value_network_warms_up(pools: Pools) -> None:
    settings = UpdateConfig(learning_rate=1e-3, value_warmup_steps=2, microbatch_samples=2)
    first, second = together(pools, held, small_policy(), settings)
    assert first == second
    policies, values = zip(*first, strict=True)
    assert policies[0] == policies[1] == policies[2] != policies[3]
    assert len(set(values)) == 4


def skipped(ranks: Sharded, policy: nn.Module, fault: str) -> tuple[list[float], list[str]]:
    """Whether each of three updates was skipped, of which the second goes wrong in the last rank
    alone, and what policy and optimizer are after each."""
    update = new_update(policy, GROUPS, UpdateConfig(learning_rate=1e-3), ranks)
    is_wrong = False
    last = list(update.policy.parameters())[-1]

    def spoil_loss(_: nn.Module, __: object, logits: Tensor) -> Tensor | None:
        return logits * torch.nan if is_wrong else None

    def spoil_gradient(parameter: Tensor) -> None:
        if is_wrong and parameter.grad is not None:
            parameter.grad *= torch.inf

    if ranks.rank == 1 and fault == "loss":
        update.policy.register_forward_hook(spoil_loss)
    if ranks.rank == 1 and fault == "gradient":
        last.register_post_accumulate_grad_hook(spoil_gradient)
    flags, states = [], []
    for version in range(3):
        is_wrong = version == 1
        flags.append(update.step([experience(version)])["update/skipped"])
        states.append(state_digest(update))
    return flags, states


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_parts_skip_what_is_not_finite_together(pools: Pools, fault: str) -> None:
    """The loss of one rank's rows, or the gradient of what one rank holds of one tensor."""
    first, second = together(pools, skipped, small_policy(), fault)
    assert first == second
    flags, states = first
    assert flags == [0, 1, 0]
    assert states[0] == states[1] != states[2]


def late(ranks: Sharded, policy: nn.Module) -> str:
    """What the first rank says of an update in which the other takes no part."""
    update = new_update(policy, PAPER, UpdateConfig(), ranks)
    if ranks.rank == 1:
        return ""
    with pytest.raises(ConnectionError) as found:
        update.step([experience(0)])
    return str(found.value)


def test_a_part_that_is_late_is_missed_within_the_deadline(pools: Pools) -> None:
    together(pools, state_of, small_policy())  # both processes are up
    message, _ = together(pools, late, small_policy(), timeout=2)
    assert "rank 0 lost another rank of its group of 2" in message
