"""Costs measured here: a few updates of the real thing, one after another and then side by side.

    max_lag 0   tasks mostly alone    their durations are the costs
    max_lag 1   tasks side by side    the contention is what makes the simulation as slow as this

Durations come from the spans of `cluster.trace`; the real fleet does the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import ray

from cluster.fleet import Fleet
from cluster.lag_bench import one_turn, run_turn
from cluster.placement import place
from cluster.simulation.costs import Costs, costs_of
from cluster.simulation.fleet import Machine
from cluster.simulation.run import forecast
from cluster.supervise import Pending
from cluster.trace import Trace
from musicrl.config import TrainConfig
from musicrl.stop import StopRequest

MOST_CONTENTION = 3.0
HALVINGS = 12
SIMULATED_UPDATES = 40


def measure_costs(config: TrainConfig, machines: Sequence[Machine], *, updates: int) -> Costs:
    """Run `updates` training steps alone and as many side by side, on one learner; Ray is
    connected."""
    config = with_one_learner(config)
    walls = {}
    with real_turns(config) as turns:
        trace = Trace(updates=updates + 1, path=None)
        with turns.fleet.pending.watched(trace):
            walls[0] = turns.run(0, updates)
        walls[1] = turns.run(1, updates)
    costs = costs_of(trace.spans)
    lagging = replace(config, cluster=replace(config.cluster, max_lag=1))
    return fit_contention(lagging, machines, costs, seconds_per_update=walls[1])


def with_one_learner(config: TrainConfig) -> TrainConfig:
    """The same run, unshared: what several learners take follows from it."""
    return replace(config, cluster=replace(config.cluster, num_learners=1, learner_sharding="none"))


def measure_update(config: TrainConfig, *, updates: int) -> float:
    """Seconds of an update of the real thing, at the configured `max_lag`."""
    with real_turns(config) as turns:
        return turns.run(config.cluster.max_lag, updates)


def fit_contention(
    config: TrainConfig, machines: Sequence[Machine], costs: Costs, *, seconds_per_update: float
) -> Costs:
    """The costs with the contention at which `config` takes `seconds_per_update`, by bisection; none
    where it takes less than that without any."""
    low, high = 0.0, MOST_CONTENTION
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = replace(costs, contention=middle)
        found = forecast(config, machines, tried, updates=SIMULATED_UPDATES)
        if found.seconds_per_update > seconds_per_update:
            high = middle
        else:
            low = middle
    return replace(costs, contention=low)


class Turns:
    """A real fleet whose learner trains on and on, a turn at a time."""

    def __init__(self, config: TrainConfig, fleet: Fleet, stop: StopRequest) -> None:
        self.config, self.fleet, self.stop = config, fleet, stop
        self.version, self.weights = 0, fleet.learner.actor.weights.remote()

    def run(self, lag: int, updates: int) -> float:
        """Mean seconds of `updates` training steps, after one that fills the pipeline."""
        turn = one_turn(self.config, lag, self.version + updates + 1)
        self.version, self.weights, iterations = run_turn(
            turn, self.fleet, self.stop, self.version, self.weights
        )
        return fmean(iteration.wall_seconds for iteration in iterations[1:])


@contextmanager
def real_turns(config: TrainConfig) -> Iterator[Turns]:
    """A fleet for as long as it is open; files go to a folder that is deleted."""
    with TemporaryDirectory() as folder, StopRequest() as stop:
        train = replace(config, out=Path(folder))
        pending = Pending(store=ray, timeout_seconds=train.cluster.task_timeout_seconds)
        fleet = Fleet(train, pending, place(train.cluster, ray.nodes()))  # type: ignore[no-untyped-call]
        try:
            yield Turns(train, fleet, stop)
        finally:
            fleet.stop()
