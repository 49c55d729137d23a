"""What the controller itself costs: many simulated samplers through the real loop and replay.

No model and no Ray: tasks end in virtual time, and what is timed is the controller's own work
between two waits, real seconds. Latency and memory are shown for the first and the last fifth of
the run, since a controller that remembers too much gets slower and larger with every rollout.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.machine_rates import processor
from cluster.simulation.costs import Costs
from cluster.simulation.fleet import Machine, SimulatedFleet
from cluster.simulation.run import run_ledger
from cluster.simulation.timed import TimedStore
from musicrl.bounds import at_least
from musicrl.config import ClusterConfig, RolloutConfig, TrainConfig
from musicrl.textfile import write_text

NODE_CORES = 64
PARTS = 5
COSTS = Costs(
    sample=tuple(np.linspace(15.0, 25.0, 101)),
    apply=(0.5,),
    score=tuple(np.linspace(0.8, 1.2, 41)),
    learn=(15.0,),
    save=(5.0,),
)
"""Seconds of a task of a large model on a GPU; they set the traffic, not what is measured."""


@dataclass(frozen=True, kw_only=True)
class ControllerBenchConfig:
    """Send rollouts of simulated actors through the controller."""

    samplers: int = 1000
    scorers: int = 64
    rollouts: int = 100_000
    """Sampling tasks, each of one prompt, that go through sampling, scoring and training."""
    samples_per_prompt: int = 4
    max_lag: int = 1
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        at_least(1, samplers=self.samplers, scorers=self.scorers)
        at_least(1, samples_per_prompt=self.samples_per_prompt)
        at_least(0, max_lag=self.max_lag)
        if self.rollouts < PARTS * self.samplers:
            raise ValueError(
                f"rollouts must be {PARTS * self.samplers} or more for {self.samplers} samplers, "
                f"got {self.rollouts}"
            )

    def run(self) -> TrainConfig:
        """Every step takes one rollout of every sampler."""
        return TrainConfig(
            iterations=self.updates,
            checkpoint_every=10,
            rollout=RolloutConfig(
                prompts_per_step=self.samplers,
                prompts_per_chunk=1,
                samples_per_prompt=self.samples_per_prompt,
            ),
            cluster=ClusterConfig(
                num_samplers=self.samplers, num_scorers=self.scorers, max_lag=self.max_lag
            ),
        )

    @property
    def updates(self) -> int:
        return -(-self.rollouts // self.samplers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What was timed."""

    rollouts: int
    virtual_seconds: float
    """That the cluster would have taken."""
    real_seconds: float
    """That the whole simulation took, its actors included."""
    cycles: Sequence[float]
    """Seconds of the controller's own work in every cycle of its loop."""
    memory: Sequence[float]
    """MB of the process at the end of each update."""

    def to_json(self) -> dict[str, Any]:
        own = sum(self.cycles)
        return {
            "rollouts": self.rollouts,
            "rollouts_per_second": self.rollouts / own,
            "traffic_per_second": self.rollouts / self.virtual_seconds,
            "controller_seconds": own,
            "controller_share": own / self.virtual_seconds,
            "real_seconds": self.real_seconds,
            "parts": [
                {"part": name, **latencies(cycles), "memory_mb": float(np.mean(memory))}
                for name, cycles, memory in self.parts()
            ],
        }

    def parts(self) -> list[tuple[str, Sequence[float], Sequence[float]]]:
        """The first and the last fifth."""
        cycles, memory = len(self.cycles) // PARTS, max(1, len(self.memory) // PARTS)
        return [
            ("first fifth", self.cycles[:cycles], self.memory[:memory]),
            ("last fifth", self.cycles[-cycles:], self.memory[-memory:]),
        ]


def latencies(cycles: Sequence[float]) -> dict[str, float]:
    """Milliseconds of a cycle: the median, the 99th percentile and the largest."""
    p50, p99, most = np.percentile(cycles, [50, 99, 100])
    return {"p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "max_ms": 1e3 * most}


def bench_controller(
    config: ControllerBenchConfig, console: Console | None = None
) -> dict[str, Any]:
    """Time the traffic, print a table and write the JSON file if asked; what it holds."""
    traffic = time_traffic(config)
    report = {"machine": processor_name(), **traffic.to_json()}
    (console or Console()).print(to_table(report))
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def time_traffic(config: ControllerBenchConfig) -> Traffic:
    train = config.run()
    fleet = SimulatedFleet(train, machines_of(train), COSTS)
    timed = TimedStore(fleet.pending.store)
    fleet.pending = replace(fleet.pending, store=timed)
    memory: list[float] = []
    started = perf_counter()
    ledger = run_ledger(
        train, fleet, updates=train.iterations, after_update=lambda: memory.append(memory_mb())
    )
    return Traffic(
        rollouts=len(ledger.walls) * train.rollout.prompts_per_step,
        virtual_seconds=fleet.timeline.now,
        real_seconds=perf_counter() - started,
        cycles=timed.seconds,
        memory=memory,
    )


def machines_of(train: TrainConfig) -> list[Machine]:
    """Nodes enough for all actors."""
    cluster = train.cluster
    cores = cluster.num_samplers * cluster.sampler_threads + cluster.num_scorers + NODE_CORES
    return [Machine(cores=NODE_CORES, slots=NODE_CORES)] * -(-cores // NODE_CORES)


def memory_mb() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def processor_name() -> str:
    import torch

    return f"{processor(torch.device('cpu'))}, {os.cpu_count()} cores"


def to_table(report: dict[str, Any]) -> Table:
    title = (
        f"controller: {report['rollouts']:,} rollouts, {report['rollouts_per_second']:,.0f} a second "
        f"of its own work, which is {report['controller_share']:.1%} of the time at this traffic "
        f"({report['traffic_per_second']:.0f} a second)"
    )
    table = Table("", title=title)
    for column in ("cycle p50 ms", "p99 ms", "max ms", "memory MB"):
        table.add_column(column, justify="right")
    for part in report["parts"]:
        cells = (part["p50_ms"], part["p99_ms"], part["max_ms"])
        memory = f"{part['memory_mb']:.0f}"
        table.add_row(part["part"], *(f"{cell:.2f}" for cell in cells), memory)
    return table
