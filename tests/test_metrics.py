"""TensorBoard events and the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from musicrl.journal import add_up, slug
from musicrl.metrics import Display, Metrics
from musicrl.types import Clips, Prompt


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    return events


def test_scalars_and_lags_are_written_under_their_step(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.scalars(7, {"reward/mean": 0.25})
    metrics.lags(7, {0: 3, 1: 5})
    metrics.close()
    events = events_of(tmp_path)
    (scalar,) = events.Scalars("reward/mean")
    assert (scalar.step, scalar.value) == (7, 0.25)
    (histogram,) = events.Histograms("staleness/lag")
    counts = histogram.histogram_value
    assert (counts.num, counts.sum, counts.max) == (8, 5, 1)


def test_events_of_steps_that_are_done_again_are_hidden(tmp_path: Path) -> None:
    first = Metrics(tmp_path)
    for step in range(4):
        first.scalars(step, {"reward/mean": 0.0})
    first.close()
    again = Metrics(tmp_path, first_step=2)
    again.scalars(2, {"reward/mean": 1.0})
    again.close()
    found = [(e.step, e.value) for e in events_of(tmp_path).Scalars("reward/mean")]
    assert found == [(0, 0.0), (1, 0.0), (2, 1.0)]


def test_clips_are_heard_and_seen(tmp_path: Path) -> None:
    tone = np.sin(np.arange(1600, dtype=np.float32) * 0.3)
    clips = Clips(audio=np.stack([tone, 2 * tone]), sample_rate=16_000)
    prompts = [Prompt(id=i, text=f"tune {i}") for i in "ab"]
    metrics = Metrics(tmp_path)
    metrics.clips(3, prompts, clips)
    metrics.close()
    events = events_of(tmp_path)
    (audio,) = events.Audio("audio/01 tune b")
    assert (audio.step, audio.sample_rate) == (3, 16_000)
    (picture,) = events.Images("spectrogram/00 tune a")
    assert (picture.height, picture.width) == (513, 3)


@pytest.fixture
def lines() -> io.StringIO:
    return io.StringIO()


def test_without_a_terminal_progress_is_plain_lines(lines: io.StringIO) -> None:
    with Display(Console(file=lines, width=200)) as display:
        display.begin("training", 4, done=2)
        display.advance({"reward": 0.12345, "s/iter": 2.0})
        display.advance()
        display.say("[x] a b" * 20)
    assert lines.getvalue().splitlines() == [
        "training: from 2 to 4",
        "training 3/4  reward 0.1235  s/iter 2",
        "[x] a b" * 20,
    ]


def test_on_a_terminal_progress_is_a_bar_with_figures(lines: io.StringIO) -> None:
    with Display(Console(file=lines, width=200, force_terminal=True)) as display:
        display.begin("evaluating", 1)
        display.advance()
        display.begin("training", 4)
        display.advance({"reward": 0.12345})
    shown = lines.getvalue()
    assert "evaluating" in shown
    assert "1/4" in shown
    assert "reward 0.1235" in shown
    assert "ETA" in shown


def test_slugs_are_file_names() -> None:
    assert slug("A slow, sad tune -- for Flöte!") == "a_slow_sad_tune_for_fl_te"
    assert slug("!?") == "prompt"
    assert len(slug("word " * 100)) <= 60


def test_seconds_add_up_by_phase() -> None:
    parts = [{"sample": 1.0, "decode": 2.0}, {"sample": 0.5}, {"learn": 4.0}]
    assert add_up(parts) == {"sample": 1.5, "decode": 2.0, "learn": 4.0}
