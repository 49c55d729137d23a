"""What asynchrony buys: wall time per update at several staleness budgets, on the same actors.

The budgets take turns, so that whatever else the machine does falls on all of them; the first
update of each turn, which fills the pipeline, is not counted. With one sampler thread and one
learner thread on two cores, max_lag 0 costs sampling + learning and max_lag 1 the longer of both.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from cluster.connection import connected
from cluster.controller import Controller
from cluster.fleet import Fleet
from cluster.placement import place
from cluster.simulation.timed import TimedStore
from cluster.supervise import Pending
from musicrl.config import ClusterConfig, TrainConfig
from musicrl.guards import GuardConfig
from musicrl.journal import PHASES, Iteration, Journal
from musicrl.metrics import Display
from musicrl.run import Run, listening_chunk, training_prompts, versions
from musicrl.stop import StopRequest
from musicrl.textfile import write_text


def _one_core_each() -> TrainConfig:
    threads = ClusterConfig(num_samplers=1, sampler_threads=1, scorer_threads=1, learner_threads=1)
    return TrainConfig(cluster=threads)


@dataclass(frozen=True, kw_only=True)
class LagBenchConfig:
    """Time the training loop at several staleness budgets."""

    lags: tuple[int, ...] = (0, 1)
    """Values of max_lag to compare."""
    updates: int = 4
    """Counted updates of a turn."""
    turns: int = 3
    """Times that each budget has its turn."""
    train: TrainConfig = field(default_factory=_one_core_each)
    """What is trained; its `cluster.max_lag`, `iterations` and `out` are not read."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        if self.updates < 1 or self.turns < 1:
            raise ValueError(
                f"updates and turns must be 1 or more, got {self.updates}, {self.turns}"
            )
        if not self.lags or min(self.lags) < 0:
            raise ValueError(f"lags must be 0 or more, and at least one, got {self.lags}")


class Stopwatch(Journal):
    """Keeps the iterations of a turn."""

    def __init__(self, config: TrainConfig, run: Run) -> None:
        super().__init__(config, run, Display(Console(quiet=True)))
        self.iterations: list[Iteration] = []

    def record(self, iteration: Iteration) -> None:
        super().record(iteration)
        self.iterations.append(iteration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Counted updates of one budget."""

    max_lag: int
    wall_seconds: tuple[float, ...]
    """Of each update."""
    phases: Mapping[str, float]
    """Mean seconds of an update by phase."""
    lags: Mapping[int, int]
    """Samples by their lag."""
    controller: float
    """Mean seconds of an update in which the controller itself is at work, what it writes for
    TensorBoard included."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.wall_seconds))

    @property
    def standard_error(self) -> float:
        """NaN for a single update."""
        if len(self.wall_seconds) < 2:
            return float("nan")
        return float(np.std(self.wall_seconds, ddof=1) / np.sqrt(len(self.wall_seconds)))

    def to_json(self) -> dict[str, Any]:
        return {
            "max_lag": self.max_lag,
            "seconds_per_update": self.mean,
            "updates": list(self.wall_seconds),
            "phases": dict(self.phases),
            "controller": self.controller,
            "controller_share": self.controller / self.mean,
            "lag_histogram": {str(lag): count for lag, count in self.lags.items()},
        }


def bench_lag(config: LagBenchConfig, console: Console | None = None) -> dict[str, Any]:
    """Time every budget, print a table and write the JSON file if asked; what it holds."""
    with connected(config.train.cluster):
        timings = time_budgets(config)
    (console or Console()).print(to_table(timings))
    report = {
        "cores": os.cpu_count(),
        "versions": versions(),
        "budgets": [timing.to_json() for timing in timings],
    }
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def time_budgets(config: LagBenchConfig) -> list[Timing]:
    """The budgets in turns, on one fleet whose learner trains on and on."""
    kept: dict[int, list[Iteration]] = {lag: [] for lag in config.lags}
    own: dict[int, list[float]] = {lag: [] for lag in config.lags}
    timed = TimedStore(ray)
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        train = replace(config.train, out=Path(folder))
        pending = Pending(store=timed, timeout_seconds=train.cluster.task_timeout_seconds)
        fleet = Fleet(train, pending, place(train.cluster, ray.nodes()))  # type: ignore[no-untyped-call]
        version, weights = 0, fleet.learner.actor.weights.remote()
        try:
            for lag in config.lags * config.turns:
                turn = one_turn(train, lag, version + config.updates + 1)
                timed.seconds.clear()
                version, weights, iterations = run_turn(turn, fleet, stop, version, weights)
                kept[lag] += iterations[1:]
                own[lag].append(sum(timed.seconds) / len(iterations))
        finally:
            fleet.stop()
    return [to_timing(lag, iterations, own[lag]) for lag, iterations in kept.items()]


def one_turn(train: TrainConfig, lag: int, last: int) -> TrainConfig:
    cluster = replace(train.cluster, max_lag=lag)
    guards = GuardConfig()  # nothing stops a turn or measures in it
    return replace(train, iterations=last, checkpoint_every=last, cluster=cluster, guards=guards)


def run_turn(
    config: TrainConfig, fleet: Fleet, stop: StopRequest, version: int, weights: Any
) -> tuple[int, Any, list[Iteration]]:
    """Train from `version` to the last step; the version and weights then, and the iterations."""
    with Stopwatch(config, Run(config.out)) as journal:
        controller = Controller(
            config,
            prompts=training_prompts(config),
            fleet=fleet,
            journal=journal,
            stop=stop,
            heard=listening_chunk(config),
            measure=lambda version, weights: None,  # never due: the bench sets no such guard
        )
        version, weights = controller.train(version, weights)
        if stop.is_requested:
            raise KeyboardInterrupt
        return version, weights, journal.iterations


def to_timing(lag: int, iterations: list[Iteration], controller: list[float]) -> Timing:
    """`controller` is its own work, seconds of an update in each turn."""
    lags: dict[int, int] = {}
    for iteration in iterations:
        for age, count in iteration.report.lags.items():
            lags[age] = lags.get(age, 0) + count
    phases = {p: float(np.mean([i.seconds.get(p, 0.0) for i in iterations])) for p in PHASES}
    walls = tuple(iteration.wall_seconds for iteration in iterations)
    return Timing(
        max_lag=lag,
        wall_seconds=walls,
        phases=phases,
        lags=lags,
        controller=float(np.mean(controller)),
    )


def to_table(timings: list[Timing]) -> Table:
    """A column for each budget; speed is relative to the first."""
    table = Table("seconds per update", title="staleness budgets")
    for timing in timings:
        table.add_column(f"max_lag {timing.max_lag}", justify="right")
    walls = (f"{timing.mean:.2f} ± {timing.standard_error:.2f}" for timing in timings)
    table.add_row("wall", *walls)
    table.add_row("speed", *(f"{timings[0].mean / timing.mean:.2f}x" for timing in timings))
    for phase in PHASES:
        table.add_row(phase, *(f"{timing.phases[phase]:.2f}" for timing in timings))
    shares = (f"{t.controller:.3f} ({t.controller / t.mean:.1%})" for t in timings)
    table.add_row("controller", *shares)
    for age in sorted({age for timing in timings for age in timing.lags}):
        table.add_row(f"samples of lag {age}", *(str(t.lags.get(age, 0)) for t in timings))
    return table
