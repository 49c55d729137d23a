"""What it costs learners that hold a part of every network each: seconds of gathering weights and
of scattering gradients, by calls and bytes.

    passes of an update (their layers, tensors and bytes, by arithmetic) ─► seconds, by what two
    ranks took here

Every pass gathers each layer's weights, a backward pass gathers them again and scatters their
gradients (`musicrl.sharding`). It knows no actors.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from musicrl.algorithms import make_algorithm
from musicrl.config import TrainConfig
from musicrl.memory import size_of, trained_share
from musicrl.optimizer import Optimizer
from musicrl.ranks import Alone, Ranks, find_store, open_store
from musicrl.update_config import UpdateConfig

HOST = "127.0.0.1"
WORD = 4
"""Bytes of a number that is gathered or scattered: float32."""
LAYERS, TENSORS = 6, 8
"""Of the networks that are timed; a decoder's layers have about so many tensors."""
WIDTHS = 16, 256
"""Of a small network, whose calls cost, and of a large one, whose bytes do."""
REPEATS = 7
DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Seconds of so many calls on so many bytes."""

    call: float
    byte: float
    """Between two ranks. Of n each holds the n-th part, and lacks the rest."""

    def seconds(self, load: Moved, *, ranks: int) -> float:
        return load.calls * self.call + load.num_bytes * self.byte * 2 * (ranks - 1) / ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    calls: int
    num_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What every update of a run moves."""

    gathered: Moved
    """Weights of layers, and of what is in no layer."""
    scattered: Moved
    """Their gradients."""
    whole: Moved
    """Tensors of which every rank gets all: weights to publish, what Muon steps along."""
    stepped: int
    """Tensors that optimizers step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """Of a machine: what two ranks pay beside their computing."""

    gather: Line
    scatter: Line
    whole: Line
    step: float
    """Seconds by which an optimizer is slower for each tensor of which it has a part."""

    def seconds(self, load: Load, *, ranks: int) -> float:
        """Of an update."""
        lines = (
            (self.gather, load.gathered),
            (self.scatter, load.scattered),
            (self.whole, load.whole),
        )
        moving = sum(line.seconds(moved, ranks=ranks) for line, moved in lines)
        return moving + load.stepped * self.step


def load_of(config: TrainConfig) -> Load:
    """Of a run on `cluster.num_learners`, whose policy is not held back.

    Raises FileNotFoundError or ValueError naming what cannot be sized.
    """
    size, update, algorithm = size_of(config), config.update, make_algorithm(config.algorithm)
    rank = config.model.lora.rank
    samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    clip = round(size.cells * trained_share(config))

    def passes(rows: int) -> int:
        share = -(-rows // config.cluster.num_learners)
        return -(-share // update.pass_size(clip))

    once, steps = passes(samples), update.num_steps
    stepping = steps * passes(samples // update.minibatches)
    has_value, has_steps = algorithm.needs_value, steps > 1
    forward = {
        "policy": once * algorithm.needs_current,
        "base": once * algorithm.needs_reference_tokens
        + stepping * algorithm.needs_reference_distribution,
        "value": once * (algorithm.needs_current + has_steps) * has_value,
    }
    backward = {"policy": stepping, "base": 0, "value": stepping * has_value}
    gathered = {name: forward[name] + 2 * backward[name] for name in forward}
    numbers = {"policy": size.policy, "base": size.policy, "value": size.value}
    learning = rank * size.adapters if rank else size.policy
    learned = {"policy": learning, "value": size.value}
    tensors = size.adapted if rank else size.tensors
    is_muon = update.muon_learning_rate is not None
    groups = size.layers + 1
    return Load(
        gathered=Moved(
            calls=groups * sum(gathered.values()),
            num_bytes=WORD * float(sum(gathered[n] * numbers[n] for n in gathered)),
        ),
        scattered=Moved(
            calls=groups * sum(backward.values()),
            num_bytes=WORD * float(sum(backward[n] * learned[n] for n in learned)),
        ),
        whole=Moved(
            calls=tensors + steps * size.matrices * is_muon,
            num_bytes=WORD * float(learning + steps * size.linears * is_muon),
        ),
        stepped=steps * (tensors + size.value_tensors * has_value),
    )


def measure_gathering() -> Gathering:
    """Two ranks on this machine, over its loopback: a network between machines is slower."""
    store = open_store(HOST, DEADLINE_SECONDS)
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in range(2)]
        ranks = [pool.submit(_time_rank, rank, store.port) for rank, pool in enumerate(pools)]
        found = [future.result(timeout=2 * DEADLINE_SECONDS) for future in ranks]
    small, large = (
        [max(pair) for pair in zip(*both, strict=True)] for both in zip(*found, strict=True)
    )
    more = [WORD * TENSORS * (width**2) for width in WIDTHS]
    byte = [max(0.0, a - b) / (more[1] - more[0]) for a, b in zip(large, small, strict=True)]
    gather, scatter, whole = (
        Line(call=max(0.0, call - each * more[0]), byte=each)
        for call, each in zip(small[:3], byte[:3], strict=True)
    )
    whole = Line(call=whole.call / TENSORS, byte=whole.byte)
    return Gathering(gather=gather, scatter=scatter, whole=whole, step=max(0.0, small[3]) / TENSORS)


def _time_rank(rank: int, port: int) -> list[list[float]]:
    """Of a small and of a large layer: seconds beyond a whole one's of gathering it, of scattering
    its gradients, of making its tensors whole, of stepping it."""
    from musicrl.sharding import join_sharded  # a second to load

    torch.set_num_threads(1)
    ranks = join_sharded(
        find_store(HOST, port, DEADLINE_SECONDS),
        rank=rank,
        size=2,
        host=HOST,
        timeout_seconds=DEADLINE_SECONDS,
        device=torch.device("cpu"),
    )
    return [_beyond(_time_parts(width, ranks), _time_parts(width, Alone())) for width in WIDTHS]


def _beyond(parts: list[float], whole: list[float]) -> list[float]:
    forward, both, made, stepped = (
        (mine - theirs) / LAYERS for mine, theirs in zip(parts, whole, strict=True)
    )
    return [forward, both - 2 * forward, made, stepped]


def _time_parts(width: int, ranks: Ranks) -> list[float]:
    """Seconds of a forward pass, of one with its backward pass, of making all tensors whole, and of
    an optimizer's step."""
    torch.manual_seed(0)
    network = nn.Sequential(*(_layer(width) for _ in range(LAYERS)))
    ranks.spread(network, list(network))
    optimizer = Optimizer(network, UpdateConfig(muon_learning_rate=None).policy_optimizer, ranks)
    rows = torch.ones(1, width)

    def learn() -> None:
        network(rows).sum().backward()

    def make_whole() -> list[Tensor]:
        return [ranks.whole(parameter.detach()) for parameter in network.parameters()]

    forward = _timed(torch.no_grad()(partial(network, rows)))
    both = _timed(learn)
    made = _timed(make_whole)
    stepping = []
    for _ in range(REPEATS):
        learn()
        stepping.append(_seconds(partial(optimizer.step, 0.0)))
    return [forward, both, made, median(stepping)]


def _layer(width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(TENSORS)))


def _timed(work: Callable[[], object]) -> float:
    """Median seconds, after one that does not count."""
    work()
    return median(_seconds(work) for _ in range(REPEATS))


def _seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started
