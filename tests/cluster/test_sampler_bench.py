"""The benchmark of the sampler."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cluster.machine_rates import Rates
from cluster.sampler_bench import (
    Row,
    SamplerBenchConfig,
    bench_sampler,
    to_tables,
)
from cluster.sampler_subject import GUIDANCE, SHAPES, Shape, Subject, musicgen_peer
from cluster.sampler_worker import Worker
from musicrl.policies.delayed import DelayedLM
from musicrl.sampler.cost import step_cost
from musicrl.world import World


@pytest.mark.compiler
def test_engines_stand_beside_the_limit(tiny_world: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    report = bench_sampler(
        SamplerBenchConfig(
            weights=tiny_world, batches=(1, 3), turns=1, threads=1, json=tmp_path / "bench.json"
        ),
        Console(file=shown, width=120),
    )
    assert report == json.loads((tmp_path / "bench.json").read_text())
    rows = report["rows"]
    engines = [("reference", "float32"), ("musicrl", "float32"), ("musicrl", "bfloat16")]
    kinds = [(batch, *engine) for batch in (1, 3) for engine in engines]
    assert [(row["batch"], row["engine"], row["dtype"]) for row in rows] == kinds
    for row in rows:
        assert row["ms_per_step"] > 0
        assert row["roofline_ms"] > 0
        per_step = row["batch"] * 5 / (row["ms_per_step"] / 1e3)
        assert row["tokens_per_s"] == pytest.approx(per_step)
    assert rows[3]["roofline_ms"] > rows[0]["roofline_ms"]
    assert rows[1]["roofline_ms"] > rows[2]["roofline_ms"]
    assert report["machine"]["gflops"].keys() == {"float32", "bfloat16"}
    assert "GFLOP/s" in shown.getvalue()


def test_an_engine_that_fails_is_named() -> None:
    subject = Subject(
        shape="12M", engine="musicrl", dtype="float32", batch=1, threads=1, steps=5000
    )
    with (
        Worker(subject) as worker,
        pytest.raises(RuntimeError, match=r"engine musicrl failed: .*num_steps must be 1 to 1024"),
    ):
        worker.generate()


SPINNING = """#!{python}
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    for _ in sys.stdin:
        print(child.pid, flush=True)
finally:
    child.kill()
"""
"""An engine whose child is never idle; it answers with the child's number."""


def state(process: int) -> str:
    """First letter of what the system says of a process: R runs, T is stopped; none: it has ended."""
    command = ["ps", "-o", "stat=", "-p", str(process)]
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    return said.stdout.strip()[:1]


def becomes(process: int, *wanted: str) -> bool:
    for _ in range(500):
        if state(process) in wanted:
            return True
        time.sleep(0.02)
    return False


def test_an_engine_stands_still_while_others_have_their_turn(tmp_path: Path) -> None:
    engine = tmp_path / "python"
    engine.write_text(SPINNING.format(python=sys.executable))
    engine.chmod(0o700)
    subject = Subject(shape="12M", engine="vllm", dtype="float32", batch=1, threads=1, steps=2)
    with Worker(subject, engine) as worker:
        child = int(worker.generate())
        assert becomes(child, "T")
        assert int(worker.generate()) == child  # it goes on where it was
        assert becomes(child, "T")
    assert becomes(child, "", "Z")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_interpreter_without_vllm_is_told() -> None:
    subject = Subject(shape="12M", engine="vllm", dtype="float32", batch=1, threads=1, steps=2)
    with (
        Worker(subject, Path(sys.executable)) as worker,
        pytest.raises(RuntimeError, match=r"engine vllm failed: .*No module named 'vllm'"),
    ):
        worker.generate()


def test_vllm_is_given_the_model_that_we_time() -> None:
    transformers = pytest.importorskip("transformers")
    subject = Subject(shape="12M", engine="vllm", dtype="float32", batch=1, threads=1, steps=2)
    config = json.loads(subject.to_vllm())["config"]
    with torch.device("meta"):
        peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
        own = DelayedLM(SHAPES["12M"])
    prefix = sum(p.numel() for name, p in own.named_parameters() if "condition" in name)
    numbers = sum(p.numel() for p in own.parameters()) - prefix
    assert sum(p.numel() for p in peer.parameters()) == pytest.approx(numbers, rel=0.001)


@pytest.mark.parametrize("shape", GUIDANCE)
def test_transformers_is_given_the_musicgen_that_we_time(shape: Shape) -> None:
    pytest.importorskip("transformers")
    with torch.device("meta"):
        peer = musicgen_peer(SHAPES[shape]).decoder
        own = DelayedLM(SHAPES[shape])
    sizes = {name: p.numel() for name, p in own.named_parameters() if "condition" not in name}
    assert sum(p.numel() for p in peer.parameters()) == sum(sizes.values())


def test_speed_is_relative_to_the_first_engine_of_the_same_precision() -> None:
    def row(engine: str, dtype: str, ms: float) -> Row:
        return Row(
            shape="12M",
            batch=2,
            dtype=dtype,
            engine=engine,
            ms_per_step=ms,
            tokens_per_s=1.0,
            clip_seconds_per_s=1.0,
            roofline_ms=1.0,
        )

    rows = [
        row("hf", "float32", 8.0),
        row("musicrl", "float32", 4.0),
        row("hf", "bfloat16", 6.0),
        row("musicrl", "bfloat16", 1.0),
    ]
    rates = Rates(products={"float32": 1e9, "bfloat16": 2e9}, memory=1e9)
    speeds = [list(table.columns[-1].cells) for table in to_tables(rows, rates)]
    assert speeds == [["1.00x", "2.00x"], ["1.00x", "6.00x"]]


def test_tables_fit_a_terminal_of_80_columns() -> None:
    row = Row(
        shape="musicgen-small",
        batch=128,
        dtype="bfloat16",
        engine="vllm-tcmalloc",
        ms_per_step=1234.56,
        tokens_per_s=123456.0,
        clip_seconds_per_s=1234.5,
        roofline_ms=1000.0,
    )
    rates = Rates(products={"float32": 3e11, "bfloat16": 1.5e12}, memory=2e10)
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in to_tables([row], rates):
        console.print(table)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    title, *_ = shown.splitlines()
    assert title.strip() == "musicgen-small, bfloat16: 1500 GFLOP/s, 20 GB/s"
    wanted = "vllm-tcmalloc 128 1234.56 1000.00 81% 123,456 1234.5 1.00x"
    assert wanted in " ".join(shown.replace("\u2502", " ").split())


def test_the_cost_of_a_step_grows_with_its_rows(tiny_world: Path) -> None:
    policy = World.load(tiny_world).policy
    few, many = (step_cost(policy, num_conditions=2, batch=b, steps=4) for b in (16, 64))
    assert many.flops == pytest.approx(4 * few.flops, rel=0.05)
    assert many.cached == 4 * few.cached
    assert many.weights == few.weights == sum(p.numel() for p in policy.parameters())
    guided = step_cost(policy, num_conditions=2, batch=16, steps=4, guidance=3.0)
    assert guided.cached == 2 * few.cached


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"turns": 0}, "turns"),
        ({"threads": -1}, "threads"),
        ({"batches": ()}, "batches"),
        ({"batches": (4, 0)}, "batches"),
        ({"engines": ()}, "engines"),
        ({"engines": ("vllm",)}, "vllm needs vllm_python"),
        ({"shapes": ()}, "shapes"),
        ({"steps": 2000}, "steps"),
    ],
)
def test_impossible_benchmarks_are_refused(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SamplerBenchConfig(**settings)  # type: ignore[arg-type]
