"""The controller's benchmark on few actors, and the stopwatch that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.cli import main
from cluster.controller_bench import ControllerBenchConfig, bench_controller
from cluster.simulation.timed import TimedStore


class Slow:
    """A store in which everything takes 20 s, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def wait(
        self, refs: list[Any], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]:
        self.now += 20
        return refs, []

    def get(self, ref: Any, *, timeout: float) -> Any:
        self.now += 20
        return ref


def test_only_what_happens_between_the_calls_is_the_controllers() -> None:
    slow = Slow()
    timed = TimedStore(slow, slow.clock)
    for _ in range(3):
        timed.wait([1], num_returns=1, timeout=0.5, fetch_local=False)
        timed.wait([1], num_returns=1, timeout=0, fetch_local=False)
        timed.get(1, timeout=1)
        slow.now += 5
    timed.wait([1], num_returns=1, timeout=0.5, fetch_local=False)
    assert timed.seconds == [0, 5, 5, 5]


def test_all_rollouts_pass_and_the_figures_fit_each_other(tmp_path: Path) -> None:
    config = ControllerBenchConfig(
        samplers=20, scorers=2, rollouts=400, json=tmp_path / "controller.json"
    )
    report = bench_controller(config, Console(quiet=True))
    assert json.loads((tmp_path / "controller.json").read_text()) == report
    assert report["rollouts"] == 400
    # Twenty samplers at 20 s a rollout, at the pace of the slowest; the learner's 15 s are hidden.
    assert 0.5 < report["traffic_per_second"] < 1.0
    assert report["controller_share"] == pytest.approx(
        report["controller_seconds"] * report["traffic_per_second"] / 400
    )
    assert report["rollouts_per_second"] == pytest.approx(400 / report["controller_seconds"])
    assert [part["part"] for part in report["parts"]] == ["first fifth", "last fifth"]


def test_too_few_rollouts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "controller", "--rollouts", "100"]) == 1
    assert "rollouts must be 5000 or more for 1000 samplers, got 100" in capsys.readouterr().err
