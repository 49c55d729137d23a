"""Ranks in threads, each with its own network: together they do what one process does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from musicrl.algorithms import make_algorithm
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.ranks import Group, join_group
from musicrl.sampler.sampling import SamplingConfig
from musicrl.update import PolicyUpdate
from musicrl.update_config import UpdateConfig
from tests.sharing import GROUPS, PAPER, PPO, experience, small_policy, trained

Result = TypeVar("Result")


def together(size: int, work: Callable[[Group], Result], *, timeout: float = 60) -> list[Result]:
    """What each rank's `work` returns."""
    store = HashStore()

    def run(rank: int) -> Result:
        return work(
            join_group(store, rank=rank, size=size, host="127.0.0.1", timeout_seconds=timeout)
        )

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (PAPER, UpdateConfig(microbatch_samples=2)),
        (GROUPS, UpdateConfig(microbatch_samples=2, value_warmup_steps=2)),
        (PPO, UpdateConfig(epochs=2, minibatches=3, microbatch_samples=1)),
        (PAPER, UpdateConfig(muon_learning_rate=1e-3)),
    ],
    ids=["paper", "groups", "ppo", "muon"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_end_where_one_process_ends(
    algorithm: AlgorithmConfig, settings: UpdateConfig, size: int
) -> None:
    """In float64: some gradients are zero but for rounding (the value network starts at the mean
    return), and in float32 Adam makes whole steps of that, so that even one process ends up to
    1.5e-3 from itself with other microbatches."""
    policies = [small_policy().double() for _ in range(size + 1)]
    before = copy.deepcopy(policies[-1]).state_dict()
    settings = replace(settings, learning_rate=1e-3)
    expected, figures = trained(policies[-1], algorithm, settings)
    found = together(size, lambda ranks: trained(policies[ranks.rank], algorithm, settings, ranks))
    assert any((t - expected[f"policy.{n}"]).abs().max() > 1e-3 for n, t in before.items())
    for state, same in found:
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
            assert tensor.equal(found[0][0][name])
        for one, other in zip(figures, same, strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_float32_ranks_end_where_one_process_ends_without_a_value_network() -> None:
    settings = UpdateConfig(learning_rate=1e-3, microbatch_samples=2)
    policies = [small_policy() for _ in range(3)]
    expected, _ = trained(policies[2], GROUPS, settings)
    for state, _ in together(2, lambda r: trained(policies[r.rank], GROUPS, settings, r)):
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_fewer_rows_than_ranks_leave_a_rank_idle() -> None:
    def work(ranks: Group) -> tuple[list[int], list[float]]:
        rows = torch.arange(2)
        share = ranks.share(rows)
        parts = [share.float() + 5] if len(share) else []
        return share.tolist(), ranks.join(parts, torch.zeros(2)).tolist()

    assert together(3, work) == [([0], [5, 6]), ([1], [5, 6]), ([], [5, 6])]


def test_a_gradient_that_nobody_has_stays_none() -> None:
    def work(ranks: Group) -> tuple[float, Tensor | None, Tensor | None]:
        seen, unseen = torch.zeros(2), torch.zeros(3)
        if ranks.rank == 1:
            seen.grad = torch.tensor([1.0, 2.0])
        loss = ranks.add_up([seen, unseen], 0.5)
        return loss, seen.grad, unseen.grad

    for loss, seen, unseen in together(2, work):
        assert loss == 1
        assert seen is not None
        assert seen.tolist() == [1, 2]
        assert unseen is None


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all() -> None:
    policies = [small_policy() for _ in range(2)]
    last = next(policies[1].parameters())
    last.register_hook(lambda gradient: gradient * torch.inf)

    def work(ranks: Group) -> tuple[float, bool]:
        update = PolicyUpdate(
            policies[ranks.rank],
            make_algorithm(PAPER),
            SamplingConfig(),
            UpdateConfig(),
            ranks=ranks,
        )
        before = update.weights(1).checksum
        figures = update.step([experience(0)])
        return figures["update/skipped"], update.weights(1).checksum == before

    assert together(2, work) == [(1.0, True)] * 2


def test_a_rank_that_is_missing_is_named_within_the_deadline() -> None:
    with pytest.raises(ConnectionError, match="rank 0 did not meet all 2 ranks"):
        join_group(HashStore(), rank=0, size=2, host="127.0.0.1", timeout_seconds=0.2)


def test_a_rank_that_left_is_missed_within_the_deadline() -> None:
    def work(ranks: Group) -> None:
        if ranks.rank == 0:
            with pytest.raises(ConnectionError, match="rank 0 lost another rank of its group of 2"):
                ranks.add_up([], 1.0)

    together(2, work, timeout=0.5)
