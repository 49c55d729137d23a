"""How fast the sampler is, beside the machine's own limit and beside transformers' `generate`.

Every engine runs in a process of its own; they take turns, so that whatever else the machine does
falls on all of them, and a figure is the median over turns. The limit is what a step's products take
at the fastest rate that this machine reaches in their precision, plus reading the weights and the
cached keys and values once at its memory's rate, not overlapped: both rates are measured in the same
run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from cluster.sampler_subject import GUIDANCE, MUSICGEN_FRAME_RATE, EngineName, Shape, Subject
from musicrl.run import versions, write_text
from musicrl.sampler.cost import StepCost, step_cost
from musicrl.sampler.sampling import Precision
from musicrl.solo import threads
from musicrl.world import World

MEMORY_FLOATS = 2**26
PRODUCTS = ((384, 1024), (768, 3072), (1024, 1024))
"""Inputs and outputs of the products, of `PRODUCT_ROWS` rows, that the machine's rate is taken of."""
PRODUCT_ROWS = 128
SUBJECT_MODULE = "cluster.sampler_subject"
TCMALLOC = ("tcmalloc_minimal", "tcmalloc")


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
    (neither for the world: transformers has no such policy)."""
    dtypes: tuple[Precision, ...] = ("float32", "bfloat16")
    turns: int = 5
    threads: int = 0
    """CPU threads (0: torch's own choice)."""
    seconds: float | None = None
    """Length of the clips of shape "world" (none: whole ones)."""
    steps: int = 500
    """Steps of the clips of other shapes."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"turns must be 1 or more, got {self.turns}")
        if self.threads < 0:
            raise ValueError(f"threads must be 0 or more, got {self.threads}")
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
        if "hf-tcmalloc" in self.engines and tcmalloc() is None:
            raise ValueError(
                "engine hf-tcmalloc needs the library tcmalloc, which is not installed"
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
        rates = Rates.measure(config.turns)
    cells = [(shape, batch) for shape in config.shapes for batch in config.batches]
    rows = [
        row
        for shape, batch in track(cells, description="sampling", console=console)
        for row in _time_cell(shape, batch, count, config, rates)
    ]
    report = {
        "rows": [asdict(row) for row in rows],
        "machine": {
            "processor": _processor(),
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
            weights=None if config.weights is None else str(config.weights),
        )
        for dtype in config.dtypes
        for engine in config.engines
        if (engine, dtype) != ("reference", "bfloat16")
        if not (shape == "world" and engine.startswith("hf"))
    ]
    seconds = _take_turns(subjects, config.turns)
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


def _take_turns(subjects: Sequence[Subject], turns: int) -> list[float]:
    """Median seconds of each subject."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(subject)) for subject in subjects]
        for worker in workers:  # the first warms up
            worker.generate()
        seconds = [[worker.generate() for worker in workers] for _ in range(turns)]
    return [median(column) for column in zip(*seconds, strict=True)]


class Worker:
    """A process that generates when asked to."""

    def __init__(self, subject: Subject) -> None:
        environment = dict(os.environ)
        if subject.engine == "hf-tcmalloc":
            environment["LD_PRELOAD"] = str(tcmalloc())
        self.subject = subject
        self._process = subprocess.Popen(
            [sys.executable, "-m", SUBJECT_MODULE, subject.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def generate(self) -> float:
        """Seconds of one generation. Raises RuntimeError when the process has failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (ValueError, BrokenPipeError) as fault:
            said = self._process.communicate()[1].strip().splitlines()
            last = said[-1] if said else "it said nothing"
            raise RuntimeError(f"engine {self.subject.engine} failed: {last}") from fault


def tcmalloc() -> str | None:
    """The file name of the library, if it is installed."""
    return next(filter(None, map(find_library, TCMALLOC)), None)


def _processor() -> str:
    """The name of the machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PRODUCT_ROWS)
        fused = torch.ops.mkldnn._linear_pointwise
        for work in (
            partial(F.linear, x, weight),
            partial(fused, x, packed, None, "none", [], "none"),
        ):
            taken = _fastest(turns, work)
            best = max(best, 2 * PRODUCT_ROWS * inputs * outputs / taken)
    return best


def _fastest(turns: int, work: Callable[[], object], *, repeats: int = 50) -> float:
    """Seconds of one call, of the fastest turn."""
    seconds = []
    for _ in range(turns + 1):
        started = perf_counter()
        for _ in range(repeats):
            work()
        seconds.append((perf_counter() - started) / repeats)
    return min(seconds)


def to_table(rows: Sequence[Row], rates: Rates) -> Table:
    """A line for each row; speed is relative to the first engine of the same shape and batch, in
    the same precision if that engine has it."""
    products = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.products.items())
    title = f"sampler (GFLOP/s: {products}; {rates.memory / 1e9:.0f} GB/s)"
    table = Table("shape", "engine", "dtype", title=title)
    for name in ("batch", "ms a step", "tokens/s", "clip s/s", "limit", "of the limit", "speed"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.shape,
            row.engine,
            row.dtype,
            str(row.batch),
            f"{row.ms_per_step:.2f}",
            f"{row.tokens_per_s:,.0f}",
            f"{row.clip_seconds_per_s:.1f}",
            f"{row.roofline_ms:.2f}",
            f"{row.roofline_ms / row.ms_per_step:.0%}",
            f"{_baseline(row, rows).ms_per_step / row.ms_per_step:.2f}x",
        )
    return table


def _baseline(row: Row, rows: Sequence[Row]) -> Row:
    same = [other for other in rows if (other.shape, other.batch) == (row.shape, row.batch)]
    alike = [other for other in same if other.engine == same[0].engine]
    return next((other for other in alike if other.dtype == row.dtype), same[0])
