"""How fast the sampler is, beside the machine's own limit: milliseconds a step, by batch and engine.

Engines take turns, so that whatever else the machine does falls on all of them; a figure is the
median over turns. The limit is what the step's matrix products take at the fastest rate that this
machine reaches in their precision, plus reading the weights and the cached keys and values once at
its memory's rate, not overlapped: both rates are measured in the same run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from musicrl.policies.base import Policy
from musicrl.run import versions, write_text
from musicrl.sampler.cost import StepCost, step_cost
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import Precision, SamplingConfig
from musicrl.solo import threads
from musicrl.world import World

TEXT = "a slow fiddle tune on the flute"
MEMORY_FLOATS = 2**26
PRODUCTS = ((384, 1024), (768, 3072), (1024, 1024))
"""Inputs and outputs of the products, of `PRODUCT_ROWS` rows, that the machine's rate is taken of."""
PRODUCT_ROWS = 128
Engines = Literal["reference", "cpu", "cpu-bfloat16"]
ENGINES: Mapping[Engines, SamplingConfig] = {
    "reference": SamplingConfig(backend="reference"),
    "cpu": SamplingConfig(backend="cpu"),
    "cpu-bfloat16": SamplingConfig(backend="cpu", precision="bfloat16"),
}


@dataclass(frozen=True, kw_only=True)
class SamplerBenchConfig:
    """Time the sampler."""

    weights: Path | None = None
    """Folder of a world (none: the shipped tiny one)."""
    batches: tuple[int, ...] = (1, 16, 64, 128)
    """Samples at once, all of one prompt."""
    engines: tuple[Engines, ...] = tuple(ENGINES)
    """Ratios are to the first."""
    turns: int = 5
    threads: int = 0
    """CPU threads (0: torch's own choice)."""
    seconds: float | None = None
    """Length of the clips (none: whole ones)."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"turns must be 1 or more, got {self.turns}")
        if self.threads < 0:
            raise ValueError(f"threads must be 0 or more, got {self.threads}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches must be 1 or more, and at least one, got {self.batches}")
        if not self.engines:
            raise ValueError("engines must name at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One batch on one engine."""

    shape: str
    batch: int
    dtype: str
    engine: str
    ms_per_step: float
    tokens_per_s: float
    clip_seconds_per_s: float
    roofline_ms: float


def bench_sampler(config: SamplerBenchConfig, console: Console | None = None) -> dict[str, Any]:
    """Time every batch on every engine, print a table and write the JSON file if asked; what it
    holds."""
    subject = Subject.of_world(config.weights, config.seconds)
    count = config.threads or torch.get_num_threads()
    with threads(count):
        rates = Rates.measure(config.turns)
        rows = [
            row
            for batch in track(config.batches, description="sampling", console=console)
            for row in _time_batch(subject, batch, config, rates)
        ]
    report = {
        "rows": [asdict(row) for row in rows],
        "machine": {
            "cores": os.cpu_count(),
            "threads": count,
            "gflops": {name: rate / 1e9 for name, rate in rates.products.items()},
            "gigabytes_per_s": rates.memory / 1e9,
        },
        "versions": versions(),
    }
    (console or Console()).print(to_table(rows, rates))
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A policy to time."""

    shape: str
    policy: Policy
    conditions: Tensor
    """int64 [1, C]."""
    steps: int
    step_seconds: float

    @classmethod
    def of_world(cls, folder: Path | None, seconds: float | None) -> Subject:
        """The policy of a world, on clips of so many seconds (none: whole ones)."""
        world = World.load(folder)
        count = sum(p.numel() for p in world.policy.parameters())
        return cls(
            shape=f"{count / 1e6:.1f}M",
            policy=world.policy.eval(),
            conditions=world.conditioner([TEXT]),
            steps=world.steps_of(seconds),
            step_seconds=world.step_seconds,
        )


def _time_batch(
    subject: Subject, batch: int, config: SamplerBenchConfig, rates: Rates
) -> list[Row]:
    seeds, steps = np.arange(batch, dtype=np.uint64), subject.steps
    engines = {name: Engine(subject.policy, ENGINES[name]) for name in config.engines}
    seconds: dict[Engines, list[float]] = {name: [] for name in engines}
    for turn in range(config.turns + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.generate(
                subject.conditions, samples_per_prompt=batch, seeds=seeds, num_steps=steps
            )
            if turn > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    cost = step_cost(
        subject.policy, num_conditions=subject.conditions.shape[1], batch=batch, steps=steps
    )
    return [
        Row(
            shape=subject.shape,
            batch=batch,
            dtype=ENGINES[name].precision,
            engine=name,
            ms_per_step=1e3 * median(taken) / steps,
            tokens_per_s=batch * steps * subject.policy.layout.num_streams / median(taken),
            clip_seconds_per_s=batch * steps * subject.step_seconds / median(taken),
            roofline_ms=1e3 * rates.seconds(cost, ENGINES[name].precision),
        )
        for name, taken in seconds.items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the machine reaches."""

    products: Mapping[Precision, float]
    """Floating-point operations a second."""
    memory: float
    """Bytes read a second, from an array that fits no cache."""

    @classmethod
    def measure(cls, turns: int) -> Rates:
        floats = torch.ones(MEMORY_FLOATS)
        memory = 4 * MEMORY_FLOATS / _fastest(turns, floats.sum, repeats=1)
        exact, rounded = product_rate(turns, "float32"), product_rate(turns, "bfloat16")
        return cls(products={"float32": exact, "bfloat16": rounded}, memory=memory)

    def seconds(self, cost: StepCost, precision: Precision) -> float:
        """Of a step whose products run at the fastest rate and whose reads do not overlap them."""
        size = 2 if precision == "bfloat16" else 4
        read = size * (cost.weights + cost.cached)
        return cost.flops / self.products[precision] + read / self.memory


@torch.inference_mode()
def product_rate(turns: int, precision: Precision) -> float:
    """Floating-point operations a second of the fastest product found."""
    best = 0.0
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    for inputs, outputs in PRODUCTS:
        x = torch.randn(PRODUCT_ROWS, inputs, dtype=dtype)
        weight = torch.randn(outputs, inputs, dtype=dtype)
        taken = _fastest(turns, partial(F.linear, x, weight))
        best = max(best, 2 * PRODUCT_ROWS * inputs * outputs / taken)
    return best


def _fastest(turns: int, work: Callable[[], object], *, repeats: int = 50) -> float:
    """Seconds of one call, of the fastest turn."""
    seconds = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        seconds.append((time.perf_counter() - started) / repeats)
    return min(seconds)


def to_table(rows: Sequence[Row], rates: Rates) -> Table:
    """A line for each row; speed is relative to the first engine of the same batch."""
    products = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.products.items())
    title = f"sampler (GFLOP/s: {products}; {rates.memory / 1e9:.0f} GB/s)"
    table = Table("shape", "engine", title=title)
    for name in ("batch", "ms a step", "tokens/s", "clip s/s", "limit", "of the limit", "speed"):
        table.add_column(name, justify="right")
    for row in rows:
        first = next(other for other in rows if other.batch == row.batch)
        table.add_row(
            row.shape,
            row.engine,
            str(row.batch),
            f"{row.ms_per_step:.2f}",
            f"{row.tokens_per_s:,.0f}",
            f"{row.clip_seconds_per_s:.1f}",
            f"{row.roofline_ms:.2f}",
            f"{row.roofline_ms / row.ms_per_step:.0%}",
            f"{first.ms_per_step / row.ms_per_step:.2f}x",
        )
    return table
