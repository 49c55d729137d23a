"""Pitch of solo clips: is there a melody, and does a reconstruction keep it?

Tracks come from SwiftF0, a pretrained network that is in no reward and ships with its package. It
follows one voice: what it says of chords, drums and drones means nothing, so that the judge scores
prompts of the texture 'solo' alone. The arithmetic below it knows no tracker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from musicrl.audio import resample
from musicrl.prompts import attribute
from musicrl.types import Clips, Prompt

TRACKER_RATE = 16_000
"""Hz: what the network hears."""
FRAME_MS = 16.0
"""Milliseconds between two frames of a track."""
VOICED = 0.5
"""Confidence from which the network calls a frame voiced (its own calibration)."""
TOLERANCE = 50.0
"""Cents that a pitch may be off (raw pitch accuracy, Poliner et al. 2007)."""
MIN_VOICED, MIN_NOTE_MS = 0.6, 120.0
"""Of a stable track: least share of voiced frames, least median length of its notes."""
MISSING = "the pitch judge needs SwiftF0: pip install 'musicrl[judges]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """The notes of one track, in order: runs of voiced frames on one semitone."""

    semitones: NDArray[np.int64]
    """int64 [notes], MIDI numbers."""
    lengths: NDArray[np.float64]
    """float64 [notes], ms."""

    @property
    def median_ms(self) -> float:
        """NaN without notes."""
        return float(np.median(self.lengths)) if len(self.lengths) else float("nan")

    @property
    def is_one_repeated(self) -> bool:
        """Whether one semitone is all that is played."""
        return len(np.unique(self.semitones)) == 1


class StablePitch:
    """1 for a solo with a stable, sung-able pitch track, else 0, so that the mean is their share;
    NaN where the prompt asks for no solo, or the clip is not finite.

    Raises ValueError where the tracker is not installed.
    """

    name = "stable-pitch"

    def __init__(self) -> None:
        require_tracker()

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B]."""
        finite = np.logical_and.reduce(np.isfinite(clips.audio), axis=1)
        solo = np.array([attribute(prompt, "texture") == "solo" for prompt in prompts], bool)
        scores = np.full(len(clips.audio), np.nan, np.float32)
        heard = solo & finite
        scores[heard] = [is_stable(row) for row in tracks(clips.audio[heard], clips.sample_rate)]
        return scores


def has_tracker() -> bool:
    """Whether the tracker is installed."""
    return find_spec("swift_f0") is not None


def require_tracker() -> None:
    """Raises ValueError saying what to install where the tracker is missing."""
    if not has_tracker():
        raise ValueError(MISSING)


def tracks(audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Pitch of clips float32 [B, N]: float64 [B, frames], Hz, NaN where a frame is not voiced.

    Raises ValueError where the tracker is not installed.
    """
    require_tracker()
    from swift_f0 import SwiftF0  # an optional extra

    tracker, rows = SwiftF0(threads=1), []
    for clip in audio:
        found = tracker.detect(resample(clip, sample_rate, TRACKER_RATE), TRACKER_RATE)
        rows.append(np.where(found.confidence >= VOICED, found.pitch_hz, np.nan))
    return np.stack(rows) if rows else np.empty((0, 0))


def raw_pitch_accuracy(reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of the frames [...] that are voiced in the reference, the share where the other track is
    voiced and within 50 cents. NaN where none is.

    Tracks mark unvoiced frames with NaN, so that a lost frame counts as a wrong one.
    """
    return _share(np.abs(_cents(reference, other)) <= TOLERANCE, of=~np.isnan(reference))


def raw_chroma_accuracy(reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The same with octaves forgiven."""
    cents = _cents(reference, other)
    folded = cents - 1200 * np.round(cents / 1200)
    return _share(np.abs(folded) <= TOLERANCE, of=~np.isnan(reference))


def voicing_kept(reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of the frames [...] voiced in the reference, the share voiced in the other track; NaN where
    none is."""
    return _share(~np.isnan(other), of=~np.isnan(reference))


def voiced_share(track: NDArray[np.float64]) -> float:
    """Share of the frames [T] that are voiced."""
    return float(np.mean(~np.isnan(track)))


def notes(track: NDArray[np.float64]) -> Notes:
    """Notes of one track [T]: a frame without voice or on another semitone ends one."""
    voiced = ~np.isnan(track)
    midi = np.full(len(track), -1, np.int64)
    midi[voiced] = np.round(69 + 12 * np.log2(track[voiced] / 440)).astype(np.int64)
    starts = np.flatnonzero(np.diff(midi, prepend=-2))
    lengths = np.diff([*starts, len(midi)]) * FRAME_MS
    played = midi[starts] >= 0
    return Notes(semitones=midi[starts][played], lengths=lengths[played])


def is_stable(track: NDArray[np.float64]) -> bool:
    """Whether a track [T] can be sung: voiced for 60 % of the time, half of its notes 120 ms or
    longer, and more than one note repeated."""
    found = notes(track)
    sung = voiced_share(track) >= MIN_VOICED and found.median_ms >= MIN_NOTE_MS
    return sung and not found.is_one_repeated


def _cents(reference: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    assert reference.shape == other.shape, "tracks of clips of one length"
    cents: NDArray[np.float64] = 1200 * np.log2(other / reference)
    return cents


def _share(flags: NDArray[np.bool_], *, of: NDArray[np.bool_]) -> float:
    return float(flags[of].mean()) if of.any() else float("nan")
