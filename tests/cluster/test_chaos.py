"""The benchmark of chaos: what it refuses, and what it makes of kills."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from rich.console import Console

from cluster.chaos import ChaosConfig, Kill, Monkey, Outcome, kills_table, runs_table, to_report
from cluster.chaos_run import Account, ChaosRun
from cluster.cli import main
from musicrl.archive import Archive
from musicrl.config import ClusterConfig, RolloutConfig, TrainConfig
from musicrl.rollout import chunk_seeds
from musicrl.types import Experience, Prompt, RewardBatch, Rollouts


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--targets", "[cat]"], "targets: 'cat' is none of sampler, scorer"),
        (["--lags", "[-1]"], "lags be 0 or more"),
        (["--kills", "0"], "kills, nodes and mean_seconds must be above 0"),
        (["--train.checkpoint-every", "5"], "train.checkpoint_every must be 1, got 5"),
        (["--train.archive-rollouts", "False"], "train.archive_rollouts must be set"),
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
        run=0, max_lag=0, kills=3, finished=False, account=None, is_equal=False, complaint="no"
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


def archived(out: Path, step: int, seeds: list[int], version: int) -> None:
    count = len(seeds)
    rollouts = Rollouts(
        prompts=(Prompt(id="0", text="a tune"),) * count,
        conditions=np.zeros((count, 1), np.int16),
        tokens=np.zeros((count, 2, 1), np.int16),
        logprobs=np.zeros((count, 2, 1), np.float32),
        group=np.zeros(count, np.int32),
        seeds=np.array(seeds, np.uint64),
        version=np.full(count, version, np.int64),
    )
    rewards = RewardBatch(total=np.zeros(count, np.float32), terms={}, valid=np.ones(count, bool))
    Archive(out / "rollouts").write(step, [Experience(rollouts=rollouts, rewards=rewards)])


def test_every_sample_is_accounted_for_by_its_seed(tmp_path: Path) -> None:
    """Two steps of one prompt with two samples, as they should be; then step 1 has one of its samples
    twice, and the versions are beyond the lag."""
    config = TrainConfig(
        out=tmp_path,
        iterations=2,
        rollout=RolloutConfig(prompts_per_step=1, samples_per_prompt=2, prompts_per_chunk=1),
        cluster=ClusterConfig(max_lag=1),
    )
    run = ChaosRun(config, "nowhere")
    first, second = (chunk_seeds(0, step, range(1), 2).tolist() for step in (0, 1))
    assert run.account() == Account(samples=4, lost=4, duplicated=0, too_old=0)
    archived(tmp_path, 0, first, 0)
    archived(tmp_path, 1, second, 0)
    assert run.account() == Account(samples=4, lost=0, duplicated=0, too_old=0)
    assert run.account().is_sound
    archived(tmp_path, 1, [second[0], second[0]], -1)
    assert run.account() == Account(samples=4, lost=1, duplicated=1, too_old=2)
    assert not run.account().is_sound
