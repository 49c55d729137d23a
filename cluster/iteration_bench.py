"""How long an iteration of reinforcement learning takes on a token model alone: sample, then update.

No codec and no reward model: rewards are counted from the tokens, so that what is timed is what
generic stacks for language models time too (prompts x samples x tokens, then one update with the KL
to a frozen reference). Engines take turns; a figure is the median over turns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cluster.sampler_subject import SHAPES
from musicrl.algorithms import make_algorithm
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.allocator import keep_freed_memory
from musicrl.bounds import at_least
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.run import versions
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import Backend, Precision, SamplingConfig
from musicrl.solo import threads
from musicrl.textfile import write_text
from musicrl.types import Experience, Prompt, RewardBatch, Rollouts
from musicrl.update import PolicyUpdate
from musicrl.update_config import UpdateConfig

Size = Literal["2.6M", "12M", "25M"]
SIZES: Mapping[Size, DelayedConfig] = {
    "2.6M": replace(
        SHAPES["12M"], width=192, num_layers=4, num_heads=3, num_kv_heads=3, mlp_width=512
    ),
    "12M": SHAPES["12M"],
    "25M": SHAPES["25M"],
}


@dataclass(frozen=True, kw_only=True)
class IterationBenchConfig:
    """Time whole iterations."""

    sizes: tuple[Size, ...] = ("2.6M", "12M")
    """Parameters of the Llama-like policy."""
    backends: tuple[Backend, ...] = ("reference", "auto")
    """Of the sampler; ratios are to the first."""
    prompts: int = 8
    samples: int = 4
    """Of each prompt."""
    steps: int = 312
    """Tokens of a sample."""
    precision: Precision = "float32"
    """Of the update's products."""
    turns: int = 3
    threads: int = 0
    """CPU threads (0: torch's own choice)."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        at_least(1, turns=self.turns, prompts=self.prompts)
        at_least(2, samples=self.samples)
        at_least(0, threads=self.threads)
        if not 1 <= self.steps <= 1024:
            raise ValueError(f"steps must be 1 to 1024, got {self.steps}")
        if not self.sizes or not self.backends:
            raise ValueError("sizes and backends must name at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size on one backend."""

    size: str
    backend: str
    sample_seconds: float
    update_seconds: float
    seconds: float
    tokens_per_s: float
    """Of the whole iteration."""


def bench_iteration(config: IterationBenchConfig, console: Console | None = None) -> dict[str, Any]:
    """Time every size on every backend, print a table and write the JSON file if asked; what it
    holds."""
    keep_freed_memory()  # as a learner does
    count = config.threads or torch.get_num_threads()
    with threads(count):
        rows = [
            row
            for size in track(config.sizes, description="iterating", console=console)
            for row in _time_size(size, config)
        ]
    report = {
        "rows": [asdict(row) for row in rows],
        "machine": {"cores": os.cpu_count(), "threads": count},
        "versions": versions(),
    }
    (console or Console()).print(to_table(rows))
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def _time_size(size: Size, config: IterationBenchConfig) -> list[Row]:
    subjects = {backend: _Subject(size, backend, config) for backend in config.backends}
    seconds: dict[Backend, list[tuple[float, float]]] = {name: [] for name in subjects}
    for turn in range(config.turns + 1):
        for name, subject in subjects.items():
            taken = subject.iterate(turn)
            if turn > 0:  # the first warms up
                seconds[name].append(taken)
    tokens = config.prompts * config.samples * config.steps
    rows = []
    for name, turns in seconds.items():
        sampled, updated = (median(column) for column in zip(*turns, strict=True))
        rows.append(
            Row(
                size=size,
                backend=name,
                sample_seconds=sampled,
                update_seconds=updated,
                seconds=median(sum(turn) for turn in turns),
                tokens_per_s=tokens / median(sum(turn) for turn in turns),
            )
        )
    return rows


class _Subject:
    """A policy that is sampled and updated in turns."""

    def __init__(self, size: Size, backend: Backend, config: IterationBenchConfig) -> None:
        torch.manual_seed(0)
        self.config = config
        policy = DelayedLM(SIZES[size])
        sampling = SamplingConfig(temperature=1.0, backend=backend)
        self.engine = Engine(policy, sampling)
        algorithm = make_algorithm(AlgorithmConfig(baseline="group_mean", alpha=0.01))
        update = UpdateConfig(precision=config.precision)
        self.update = PolicyUpdate(policy, algorithm, sampling, update)
        levels = SIZES[size].condition_levels
        self.conditions = torch.arange(config.prompts * levels).view(config.prompts, levels) % 256

    def iterate(self, turn: int) -> tuple[float, float]:
        """Seconds to sample and seconds to update."""
        started = perf_counter()
        rollouts = self._sample(turn)
        sampled = perf_counter()
        rewards = (rollouts.tokens % 2 == 0).mean((1, 2)).astype(np.float32)
        batch = RewardBatch(total=rewards, terms={}, valid=np.ones(len(rewards), np.bool_))
        figures = self.update.step([Experience(rollouts=rollouts, rewards=batch)])
        limit = 1e-3 if self.config.precision == "float32" else 0.5
        assert figures["mismatch/max"] < limit, (
            "the learner does not see the sampler's distribution"
        )
        return sampled - started, perf_counter() - sampled

    def _sample(self, turn: int) -> Rollouts:
        config = self.config
        count = config.prompts * config.samples
        seeds = np.arange(count, dtype=np.uint64) + np.uint64(turn * count)
        samples = self.engine.generate(
            self.conditions,
            samples_per_prompt=config.samples,
            seeds=seeds,
            num_steps=config.steps,
        )
        group = np.arange(count, dtype=np.int32) // config.samples
        return Rollouts(
            prompts=tuple(Prompt(id=str(g), text="") for g in group),
            conditions=self.conditions.numpy().astype(np.int16).repeat(config.samples, axis=0),
            tokens=samples.tokens,
            logprobs=samples.logprobs,
            group=group,
            seeds=seeds,
            version=np.full(count, self.update.version, dtype=np.int64),
        )


def to_table(rows: Sequence[Row]) -> Table:
    """A line for each row; speed is relative to the first backend of the same size."""
    table = Table("size", "sampler", title="iteration: sample, then update")
    for name in ("sample s", "update s", "iteration s", "tokens/s", "speed"):
        table.add_column(name, justify="right")
    for row in rows:
        first = next(other for other in rows if other.size == row.size)
        table.add_row(
            row.size,
            row.backend,
            f"{row.sample_seconds:.2f}",
            f"{row.update_seconds:.2f}",
            f"{row.seconds:.2f}",
            f"{row.tokens_per_s:,.0f}",
            f"{first.seconds / row.seconds:.2f}x",
        )
    return table
