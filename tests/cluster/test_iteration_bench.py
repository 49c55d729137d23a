"""The benchmark of whole iterations."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cluster.iteration_bench import IterationBenchConfig, bench_iteration


def test_backends_take_turns_on_equal_policies(tmp_path: Path) -> None:
    shown = io.StringIO()
    config = IterationBenchConfig(
        sizes=("2.6M",),
        prompts=2,
        samples=2,
        steps=6,
        turns=1,
        threads=1,
        json=tmp_path / "iteration.json",
    )
    report = bench_iteration(config, Console(file=shown, width=120))
    assert report == json.loads((tmp_path / "iteration.json").read_text())
    assert [row["backend"] for row in report["rows"]] == ["reference", "auto"]
    for row in report["rows"]:
        assert row["seconds"] == pytest.approx(row["sample_seconds"] + row["update_seconds"])
        assert row["tokens_per_s"] == pytest.approx(2 * 2 * 6 / row["seconds"])
    assert "1.00x" in shown.getvalue()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"turns": 0}, "turns"),
        ({"samples": 1}, "samples"),
        ({"steps": 1025}, "steps"),
        ({"sizes": ()}, "sizes"),
        ({"threads": -1}, "threads"),
    ],
)
def test_impossible_benchmarks_are_refused(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        IterationBenchConfig(**settings)  # type: ignore[arg-type]
