"""What it costs several learners to add up: seconds of a sum over ranks, by bytes and by ranks.

    sums of an update (their number and bytes, by arithmetic) ─► seconds, by what two ranks took here

A ring of n ranks sends 2 (n - 1) messages, each of the n-th part of the buffer (Patarasu and Yuan
2009, "Bandwidth optimal all-reduce algorithms", section 3); before and after it every rank copies
the buffer by itself, however many others there are. It knows no actors.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch._C._distributed_c10d import HashStore

from musicrl.config import TrainConfig
from musicrl.memory import size_of, trained_share
from musicrl.ranks import Group, join_group

WORD = 8
"""Bytes of a number that is summed: float64."""
MEASURED = 2_000_000
"""Numbers of the large buffer that is summed to measure."""
REPEATS = 7
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reducing:
    """Of the machine and its network, as far as sums go."""

    copy: float
    """Seconds a byte in which a rank gathers the buffer and writes the sum back, by itself."""
    send: float
    """Seconds a byte on the way from one rank to the next."""
    latency: float
    """Seconds of a message of no bytes."""

    def seconds(self, load: Load, *, ranks: int) -> float:
        """Of all sums of an update."""
        messages = 2 * (ranks - 1)
        sent = load.num_bytes * messages / ranks
        return (
            load.num_bytes * self.copy + sent * self.send + load.num_sums * messages * self.latency
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the ranks of a run sum in every update."""

    num_sums: int
    num_bytes: float


def load_of(config: TrainConfig) -> Load:
    """Every optimizer step sums the gradients of the policy and of the value network; ratios,
    entropies, KL and values of all rows are joined, and so are log-probabilities and values of
    before the update where it has several steps. Learners that hold parts sum no gradients here
    (gathering.py). What `update.parts` leaves out is not left out.

    Raises FileNotFoundError or ValueError naming what cannot be sized.
    """
    size, rank, rollout, update = (
        size_of(config),
        config.model.lora.rank,
        config.rollout,
        config.update,
    )
    has_value = config.algorithm.baseline == "value"
    networks = 1 + has_value
    learning = (rank * size.adapters if rank else size.policy) + has_value * size.value
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    cells = samples * round(size.cells * trained_share(config))
    once = networks if update.num_steps > 1 else 0
    if config.cluster.learner_sharding == "full":
        learning = networks
    joined = (3 + has_value) * update.epochs + once
    return Load(
        num_sums=update.num_steps * (networks + 3 + has_value) + once,
        num_bytes=WORD * (update.num_steps * learning + joined * cells),
    )


def measure_reducing() -> Reducing:
    """Two ranks on this machine, over its loopback: a network between machines is slower."""
    alone, together = (partial(_time_sums, ranks) for ranks in (1, 2))
    copying, message = alone(MEASURED), together(1)
    num_bytes = WORD * MEASURED
    return Reducing(
        copy=copying / num_bytes,
        send=max(0.0, together(MEASURED) - copying - message) / num_bytes,
        latency=message / 2,
    )


def _time_sums(ranks: int, size: int) -> float:
    """Median seconds in which `ranks` threads sum gradients of so many numbers."""
    store = HashStore()

    def run(rank: int) -> float:
        group = join_group(
            store, rank=rank, size=ranks, host="127.0.0.1", timeout_seconds=DEADLINE_SECONDS
        )
        parameter = torch.zeros(size, requires_grad=True)
        return median(_timed(partial(_sum, group, parameter)) for _ in range(REPEATS))

    with ThreadPoolExecutor(ranks) as threads:
        return max(threads.map(run, range(ranks)))


def _sum(group: Group, parameter: torch.Tensor) -> None:
    parameter.grad = torch.ones_like(parameter)
    group.add_up([parameter], 0.0)


def _timed(work: Callable[[], None]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started
