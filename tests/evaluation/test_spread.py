"""The table over runs, from summaries written by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from musicrl.evaluation.spread import SpreadConfig, read_summary, run_spread, spread


def write_run(folder: Path, seed: int, gain: float, kl: float | None = None) -> Path:
    def means(**values: float) -> dict[str, dict[str, float]]:
        return {k: {"mean": v, "standard_error": 0.01, "count": 9} for k, v in values.items()}

    evaluation = {
        "before": means(reward=0.3, mismatched=0.1),
        "after": means(reward=0.3 + gain, mismatched=0.1),
        "difference": means(reward=gain, mismatched=0.0),
        "kl": {} if kl is None else means(total=kl),
    }
    folder.mkdir()
    path = folder / "summary.json"
    path.write_text(json.dumps({"seed": seed, "evaluation": evaluation}))
    return path


def test_mean_and_standard_deviation_over_runs(tmp_path: Path) -> None:
    gains = [0.1, 0.2, 0.3]
    paths = [write_run(tmp_path / f"r{i}", i, gain, kl=40.0 + i) for i, gain in enumerate(gains)]
    screen = io.StringIO()
    config = SpreadConfig(summaries=(*paths[:2], tmp_path / "r2"), json=tmp_path / "out.json")
    report = run_spread(config, Console(file=screen, width=250))
    assert json.loads((tmp_path / "out.json").read_text()) == report
    change = json.loads((tmp_path / "out.json").read_text())["change"]["reward"]
    assert change["mean"] == pytest.approx(0.2)
    assert change["standard_deviation"] == pytest.approx(0.1)  # not the .0577 of a standard error
    assert change["runs"] == 3
    assert report["kl"] == {"mean": 41.0, "standard_deviation": 1.0, "runs": 3}
    assert "0.200 ± 0.100" in screen.getvalue()
    assert "+0.300" in screen.getvalue()


def test_one_run_has_no_spread_and_an_unmeasured_kl_is_null(tmp_path: Path) -> None:
    report = spread([read_summary(write_run(tmp_path / "r", 0, 0.1))])
    assert report["kl"] == {"mean": None, "standard_deviation": None, "runs": 0}
    assert report["change"]["reward"]["standard_deviation"] is None  # type: ignore[index]
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not the summary of a run"),
        ('{"seed": 1}', "is not the summary of a run"),
        ('{"seed": 1, "evaluation": null}', "not evaluated before and after"),
        ('{"seed": 1, "evaluation": {"kl": {}}}', "is not the summary of a run"),
    ],
)
def test_what_is_no_summary_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=words) as fault:
        read_summary(tmp_path)
    assert "summary.json" in str(fault.value)


def test_missing_files_and_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no summary at"):
        read_summary(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        spread([])
