"""The pitch judge: its arithmetic on hand-made tracks, its tracker on tones of known pitch."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrl.evaluation import pitch
from musicrl.types import Clips, Prompt

RATE = 16_000
A4, B4, A5, NONE = 440.0, 493.8833, 880.0, float("nan")

tracker = pytest.mark.skipif(
    find_spec("swift_f0") is None, reason="swift-f0 is not installed (the extra `judges`)"
)


def track(*runs: tuple[float, int]) -> NDArray[np.float64]:
    return np.concatenate([np.full(frames, hz) for hz, frames in runs])


def tone(*parts: tuple[float, float]) -> NDArray[np.float32]:
    """Six harmonics of each frequency, Hz, for its seconds."""
    waves = []
    for hz, seconds in parts:
        time = np.arange(round(seconds * RATE)) / RATE
        waves.append(sum(np.sin(2 * np.pi * hz * n * time) / n for n in range(1, 7)) * 0.2)
    return np.concatenate(waves).astype(np.float32)


def solo(texture: str) -> Prompt:
    return Prompt(id=texture, text=texture, source="test", attributes=(("texture", texture),))


def test_accuracies_of_a_track_with_each_kind_of_fault() -> None:
    reference = np.array([A4, A4, A4, A4, A4, NONE])
    other = np.array([A4, A4 * 2 ** (49 / 1200), A4 * 2 ** (51 / 1200), A5, NONE, A4])
    assert pitch.raw_pitch_accuracy(reference, other) == pytest.approx(2 / 5)
    assert pitch.raw_chroma_accuracy(reference, other) == pytest.approx(3 / 5)
    assert pitch.voicing_kept(reference, other) == pytest.approx(4 / 5)


def test_a_reference_without_voice_has_no_accuracy() -> None:
    silence, other = np.array([NONE, NONE]), np.array([A4, A4])
    assert np.isnan(pitch.raw_pitch_accuracy(silence, other))
    assert np.isnan(pitch.voicing_kept(silence, other))


def test_notes_end_with_the_voice_or_the_semitone() -> None:
    found = pitch.notes(track((NONE, 2), (A4, 10), (NONE, 1), (A4, 5), (B4, 8), (NONE, 3)))
    assert found.semitones.tolist() == [69, 69, 71]
    assert found.lengths.tolist() == [160.0, 80.0, 128.0]
    assert found.median_ms == 128.0


@pytest.mark.parametrize(
    ("runs", "stable"),
    [
        (((A4, 10), (B4, 10), (NONE, 13)), True),  # 20 of 33 frames
        (((A4, 10), (B4, 10), (NONE, 14)), False),  # 20 of 34 frames: 58.8 %
        (((A4, 8), (B4, 8)), True),  # notes of 128 ms
        (((A4, 7), (B4, 7)), False),  # notes of 112 ms
        (((A4, 10), (NONE, 1), (A4, 10)), False),  # one note, repeated
        (((NONE, 20),), False),
    ],
)
def test_stable_is_the_rule(runs: tuple[tuple[float, int], ...], stable: bool) -> None:
    assert pitch.is_stable(track(*runs)) is stable


@tracker
@pytest.mark.parametrize("hz", [110.0, 261.63, 1046.5])
def test_the_tracker_finds_a_known_pitch(hz: float) -> None:
    (found,) = pitch.tracks(tone((hz, 1.0))[None], RATE)
    assert pitch.voiced_share(found) > 0.9
    assert pitch.raw_pitch_accuracy(np.full(len(found), hz), found) > 0.9


@tracker
def test_the_tracker_hears_no_pitch_in_noise_or_silence() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    found = pitch.tracks(np.stack([noise, np.zeros(RATE)]).astype(np.float32), RATE)
    assert pitch.voiced_share(found) < 0.1


@tracker
def test_the_judge_tells_a_melody_from_a_held_note_and_skips_what_is_no_solo() -> None:
    melody, held = tone((440.0, 0.5), (493.88, 0.5), (587.33, 0.5)), tone((440.0, 1.5))
    broken = np.full_like(held, np.nan)
    clips = Clips(audio=np.stack([melody, held, melody, broken]), sample_rate=RATE)
    prompts = [solo("solo"), solo("solo"), solo("chords"), solo("solo")]
    scores = pitch.StablePitch()(prompts, clips)
    np.testing.assert_array_equal(scores, [1.0, 0.0, np.nan, np.nan])


def test_without_the_tracker_the_judge_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pitch, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"musicrl\[judges\]"):
        pitch.StablePitch()
