"""Judges of the sound itself, on sounds whose onsets, pitches and silences are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrl.evaluation.music import (
    Clipping,
    OnsetTempo,
    PitchVariety,
    Sounding,
    leading_classes,
    onset_rates,
)
from musicrl.types import Clips, Prompt

RATE, SECONDS = 16_000, 6


def melody(pitches: list[int], notes: int) -> NDArray[np.float32]:
    """So many decaying notes in six seconds, their MIDI pitches in turn."""
    size = RATE * SECONDS // notes
    time = np.arange(size) / RATE
    tones = []
    for index in range(notes):
        frequency = 440 * 2 ** ((pitches[index % len(pitches)] - 69) / 12)
        tones.append(0.5 * np.sin(2 * np.pi * frequency * time) * np.exp(-6 * time))
    return np.pad(np.concatenate(tones), (0, RATE * SECONDS - size * notes)).astype(np.float32)


def clips(*rows: NDArray[np.float32]) -> Clips:
    return Clips(audio=np.stack(rows), sample_rate=RATE)


def prompts(*tempi: str | None) -> list[Prompt]:
    return [
        Prompt(id=str(i), text="", attributes=(("tempo", tempo),) if tempo else ())
        for i, tempo in enumerate(tempi)
    ]


SCALE = [60, 62, 64, 65, 67, 69, 71]
SILENCE = np.zeros(RATE * SECONDS, np.float32)


@pytest.mark.parametrize("notes", [8, 18, 36])
def test_onsets_are_counted(notes: int) -> None:
    (rate,) = onset_rates(clips(melody(SCALE, notes)))
    assert rate * SECONDS == pytest.approx(notes, abs=2)


def test_tempo_is_what_the_caption_asked_for() -> None:
    slow, fast = melody(SCALE, 8), melody(SCALE, 36)
    heard = clips(slow, fast, slow, fast, fast, SILENCE)
    scores = OnsetTempo()(prompts("slow", "fast", "fast", "slow", None, "fast"), heard)
    assert scores[0] > 0.5
    assert scores[1] > 0.5
    assert scores[2] == pytest.approx(-scores[0])
    assert scores[3] == pytest.approx(-scores[1])
    assert math.isnan(scores[4])
    assert scores[5] == pytest.approx(math.log(1 / SECONDS / 3.1), abs=1e-5)


def test_a_repeated_note_has_no_variety() -> None:
    heard = clips(melody([69], 18), melody(SCALE, 21), melody([60, 67], 18), SILENCE)
    one, scale, two, none = PitchVariety()(prompts(*[None] * 4), heard)
    assert one == pytest.approx(0, abs=0.1)
    assert two == pytest.approx(math.log(2), abs=0.2)
    assert scale == pytest.approx(math.log(7), abs=0.3)
    assert math.isnan(none)


def test_silence_counts_by_its_time() -> None:
    half = melody(SCALE, 36)
    half[RATE * SECONDS // 2 :] = 0
    quiet = (1e-4 * melody(SCALE, 36)).astype(np.float32)
    shares = Sounding()(prompts(*[None] * 4), clips(melody(SCALE, 36), half, quiet, SILENCE))
    np.testing.assert_allclose(shares, [1, 0.5, 0, 0], atol=0.02)


def test_samples_at_full_scale_are_clipped() -> None:
    loud = np.zeros(RATE * SECONDS, np.float32)
    loud[: len(loud) // 4 : 2], loud[1 : len(loud) // 4 : 2] = 1.0, -1.5
    shares = Clipping()(prompts(None, None), clips(loud, SILENCE))
    np.testing.assert_allclose(shares, [0.25, 0], atol=1e-4)


@pytest.mark.parametrize("judge", [OnsetTempo(), PitchVariety(), Sounding(), Clipping()])
def test_a_clip_that_is_not_finite_has_no_score(
    judge: OnsetTempo | PitchVariety | Sounding | Clipping,
) -> None:
    bad = melody(SCALE, 18)
    bad[100] = np.nan
    scores = judge(prompts("fast", "fast"), clips(bad, melody(SCALE, 18)))
    assert np.isnan(scores).tolist() == [True, False]


@pytest.mark.parametrize("samples", [800, 1500, 2048])
def test_clips_shorter_than_a_window_are_heard(samples: int) -> None:
    """Silence follows them: a tone keeps its pitch, and begins once at most."""
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
    short = clips(tone[:samples])
    (classes,) = leading_classes(short)
    assert len(classes)
    assert not classes.any()
    (rate,) = onset_rates(short)
    assert rate * samples / RATE <= 1
