"""Curves of runs beside each other: read from real events, grouped, compared and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from cluster.cli import main
from musicrl.evaluation.curves import CurvesConfig, draw, group_curves, read_curve, run_curves
from musicrl.metrics import Metrics

QUIET = Console(quiet=True)


def a_run(path: Path, *, lag: int, rewards: list[float], seconds: float) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(f"cluster: {{max_lag: {lag}}}\nseed: 3\n")
    metrics = Metrics(path / "tensorboard")
    for step, reward in enumerate(rewards):
        metrics.scalars(step + 1, {"reward/mean": reward, "seconds/iteration": seconds})
    metrics.close()
    return path


def test_groups_are_compared_by_hand(tmp_path: Path) -> None:
    """Means of lag 0: 2 and 4; of lag 1: 1 and 3. Variances of both means are 2 / 2."""
    runs = (
        a_run(tmp_path / "a", lag=0, rewards=[0, 1, 2, 5], seconds=2.0),
        a_run(tmp_path / "b", lag=0, rewards=[2, 3, 4, 7], seconds=3.0),
        a_run(tmp_path / "c", lag=1, rewards=[0, 0, 1, 3], seconds=1.0),
        a_run(tmp_path / "d", lag=1, rewards=[2, 2, 3, 5], seconds=1.0),
    )
    out, report = tmp_path / "curves.svg", tmp_path / "curves.json"
    found = run_curves(CurvesConfig(runs=runs, out=out, json=report), QUIET)
    assert found == json.loads(report.read_text())
    zero, one = found["groups"]
    assert (zero["group"], one["group"]) == ("0", "1")
    assert zero["quarters"] == [1, 2, 3, 6]
    assert one["curve"] == [1, 1, 2, 4]
    assert (zero["seconds_per_update"], one["seconds_per_update"]) == (2.5, 1.0)
    assert zero["difference"] is None
    assert one["difference"]["mean"] == -1.0
    assert one["difference"]["standard_error"] == pytest.approx(2**0.5)
    lines = ElementTree.parse(out).getroot().findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 6  # four runs and two means


def test_a_single_run_has_no_deviation(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", lag=0, rewards=[1.0] * 8, seconds=1.0)
    (row,) = run_curves(CurvesConfig(runs=(run,)), QUIET)["groups"]
    assert row["deviation"] is None
    assert "polyline" in draw(
        group_curves([read_curve(run, by="seed", figure="reward/mean")]), by="<b>", figure="&"
    )


def test_what_a_run_does_not_have_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "a", lag=0, rewards=[1.0, 2.0], seconds=1.0)
    other = a_run(tmp_path / "b", lag=0, rewards=[1.0], seconds=1.0)
    faults = {
        (str(run), "--by", "cluster.lag"): "config.yaml has no setting cluster.lag",
        (str(run), "--figure", "kl"): "has no figure 'kl'",
        (str(run), str(other)): "has 1 updates",
        (str(tmp_path / "none"),): "config.yaml",
        (): "curves are of at least one run's folder",
    }
    for words, sentence in faults.items():
        assert main(["curves", *words]) == 1
        assert sentence in capsys.readouterr().err
