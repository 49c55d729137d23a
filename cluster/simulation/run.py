"""A simulated run: the real controller and replay, and what comes out of them in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.controller import Controller
from cluster.simulation.costs import Costs
from cluster.simulation.fleet import Machine, SimulatedFleet
from musicrl.config import EvaluationConfig, TrainConfig
from musicrl.evaluation.heldout import EvaluationChunk
from musicrl.guards import GuardConfig, Watch
from musicrl.journal import Iteration
from musicrl.stop import StopRequest
from musicrl.types import Prompt

WARMUP = 4
"""Updates in which the pipeline fills and that are not counted."""
PROMPTS = tuple(Prompt(id=str(number), text=f"prompt {number}") for number in range(64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a cluster of some size would do, over the counted updates of a simulation."""

    num_samplers: int
    max_lag: int
    seconds_per_update: float
    samples_per_second: float
    utilisation: dict[str, float]
    """Of each role, the share of its actors' time in which they work."""
    mean_lag: float
    """Versions between the weights that sampled and those that learn, over all samples."""

    @property
    def updates_per_minute(self) -> float:
        return 60.0 / self.seconds_per_update


@dataclass(slots=True)
class Silent:
    """A display of nothing."""

    def say(self, sentence: str) -> None:
        """Say nothing."""


@dataclass(slots=True)
class Nowhere:
    """A run that keeps no files."""

    folder: Path = Path("nowhere")

    def find_checkpoint(self) -> None:
        """There never is one."""


@dataclass(slots=True)
class Ledger:
    """A `cluster.roles.Log` in memory."""

    fleet: SimulatedFleet
    after_update: Callable[[], None]
    """Called when an update has been written down."""
    run: Nowhere = field(default_factory=Nowhere)
    display: Silent = field(default_factory=Silent)
    watch: Watch = field(default_factory=lambda: Watch(GuardConfig()))
    walls: list[float] = field(default_factory=list)
    """Seconds of every update."""
    lags: list[Counter[int]] = field(default_factory=list)
    busy: list[dict[str, float]] = field(default_factory=list)
    """Seconds that every role had worked at the end of every update."""

    def record(self, iteration: Iteration) -> None:
        self.walls.append(iteration.wall_seconds)
        self.lags.append(Counter(iteration.report.lags))
        self.busy.append(dict(self.fleet.busy_seconds))
        self.after_update()

    def heard(self, name: str, step: int, prompts: Any, clips: Any) -> None:
        raise AssertionError("a simulation plays nothing")


def forecast(
    config: TrainConfig, machines: Sequence[Machine], costs: Costs, *, updates: int, seed: int = 0
) -> Forecast:
    """Simulate `updates` training steps after those that fill the pipeline.

    Raises `cluster.placement.Misfit` when the machines have no room for the actors.
    """
    fleet = SimulatedFleet(config, machines, costs, seed=seed)
    ledger = run_ledger(config, fleet, updates=WARMUP + updates)
    walls, wall = ledger.walls[WARMUP:], sum(ledger.walls[WARMUP:])
    lags = sum(ledger.lags[WARMUP:], Counter[int]())
    sizes = {
        "sampler": len(fleet.sampler_actors),
        "scorer": len(fleet.scorer_actors),
        "learner": len(fleet.learner_actor.seats),
    }
    worked = {r: ledger.busy[-1][r] - ledger.busy[WARMUP - 1][r] for r in sizes}
    return Forecast(
        num_samplers=config.cluster.num_samplers,
        max_lag=config.cluster.max_lag,
        seconds_per_update=fmean(walls),
        samples_per_second=lags.total() / wall,
        utilisation={role: worked[role] / (wall * size) for role, size in sizes.items()},
        mean_lag=sum(lag * count for lag, count in lags.items()) / lags.total(),
    )


def run_ledger(
    config: TrainConfig,
    fleet: SimulatedFleet,
    *,
    updates: int,
    after_update: Callable[[], None] = lambda: None,
) -> Ledger:
    """Have the real controller train `updates` steps on a simulated fleet."""
    bare = replace(
        config,
        iterations=updates,
        evaluation=EvaluationConfig(),
        guards=GuardConfig(),
    )
    ledger = Ledger(fleet, after_update)
    controller = Controller(
        bare,
        prompts=PROMPTS,
        fleet=fleet,
        journal=ledger,
        stop=StopRequest(),
        heard=EvaluationChunk(first=0, prompts=(), mismatched=()),
        measure=_measures_nothing,
    )
    controller.train(0, fleet.learner_actor.weights.remote())
    return ledger


def _measures_nothing(version: int, weights: Any) -> None:
    raise AssertionError("a simulation measures nothing")
