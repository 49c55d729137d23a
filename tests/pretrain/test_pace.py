"""The pace of a stage: what is logged of every step, and what is said of them all."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from musicrl.pretrain.distributed import ALONE, Log
from musicrl.pretrain.pace import Pace

DRAW, STEP, PAUSE = 0.01, 0.02, 0.3


def test_steps_and_draws_are_timed_and_a_pause_is_no_pace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = ALONE.writer(tmp_path, 4)
    pace = Pace("small", ALONE, log)
    for step in pace.steps(range(4, 9)):
        with pace.drawing():
            time.sleep(DRAW)
        time.sleep(STEP - DRAW)
        if step == 6:
            time.sleep(PAUSE)  # a checkpoint
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    steps, draws = (events.Scalars(name) for name in ("time/step", "time/drawing"))
    assert [event.step for event in steps] == [event.step for event in draws] == [4, 5, 6, 7, 8]
    for step, draw in zip(steps, draws, strict=True):
        assert DRAW * 0.99 <= draw.value <= step.value
    assert steps[2].value >= STEP + PAUSE * 0.99
    said = re.search(r"5 steps of ([\d.]+) s, ([\d.]+) s \(([\d.]+) %\)", capsys.readouterr().out)
    assert said is not None
    step_seconds, draw_seconds, share = map(float, said.groups())
    assert step_seconds == pytest.approx(sorted(event.value for event in steps)[2], abs=6e-4)
    assert share == pytest.approx(100 * draw_seconds / step_seconds, rel=0.05)


def test_nothing_is_said_of_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace("small", ALONE, Log(None, 0))
    assert list(pace.steps(range(3, 3))) == []
    assert capsys.readouterr().out == ""
