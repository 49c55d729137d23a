"""The benchmark of chaos: what it refuses, and what it makes of kills."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from cluster.chaos import ChaosConfig, Kill, Monkey, Outcome, kills_table, runs_table, to_report
from cluster.chaos_run import ChaosRun
from cluster.cli import main
from musicrl.config import TrainConfig
from musicrl.textfile import write_text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--targets", "[cat]"], "targets: 'cat' is none of sampler, scorer"),
        (["--lags", "[-1]"], "lags be 0 or more"),
        (["--kills", "0"], "kills, nodes and mean_seconds must be above 0"),
        (["--train.checkpoint-every", "5"], "train.checkpoint_every must be 1, got 5"),
    ],
)
def test_a_mistake_is_named(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "chaos", *flags]) == 1
    assert named in capsys.readouterr().err


def test_a_kill_without_recovery_is_in_no_mean() -> None:
    kills = [
        Kill(run=0, target="sampler", version=1, recovery_seconds=2.0),
        Kill(run=0, target="sampler", version=4, recovery_seconds=4.0),
        Kill(run=0, target="driver", version=5, recovery_seconds=None),
    ]
    outcome = Outcome(
        run=0, max_lag=0, kills=3, finished=False, is_complete=False, is_equal=False, complaint="no"
    )
    monkey = cast("Monkey", SimpleNamespace(kills=kills, outcomes=[outcome]))
    report = to_report(ChaosConfig(), monkey)
    assert report["targets"]["sampler"] == {
        "kills": 2,
        "recovered": 2,
        "mean_seconds": 3.0,
        "max_seconds": 4.0,
    }
    assert report["targets"]["driver"]["recovered"] == 0
    assert report["targets"]["node"]["mean_seconds"] is None
    assert report["mean_recovery_seconds"] == 3.0
    console = Console(width=100, record=True, quiet=False)
    console.print(kills_table(report), runs_table(report))
    assert "NO" in console.export_text()


def finished(out: Path, **values: Any) -> ChaosRun:
    write_text(out / "summary.json", json.dumps(values))
    return ChaosRun(TrainConfig(out=out, iterations=3), "nowhere")


def test_a_run_is_complete_when_every_step_had_all_of_its_samples(tmp_path: Path) -> None:
    samples = TrainConfig().rollout.samples_per_step
    whole = finished(tmp_path / "a", finished=True, lag_histogram={"0": samples, "1": samples})
    assert whole.has_finished
    assert whole.is_complete
    torn = finished(tmp_path / "b", finished=True, lag_histogram={"0": 2 * samples - 1})
    assert not torn.is_complete
    twice = finished(tmp_path / "c", finished=True, lag_histogram={"0": 4 * samples})
    assert not twice.is_complete
