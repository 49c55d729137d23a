"""Excerpts: a window of a score, arranged and described by what is then heard.

The plan of a clip (notes in seconds, program, level, attributes) is a pure function of a seed and
the note table. Rendering is elsewhere.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from musicrl.pretrain.attributes import (
    INSTRUMENTS,
    ONSET_RATES,
    PEAKS,
    SOURCE_GENRES,
    Attributes,
)
from musicrl.pretrain.corpus import TICKS_PER_QUARTER

SPLITS = ("train", "validation", "test")
MELODY, CHORDS, DRUMS = 0, 1, 9
"""MIDI channels."""
KRUMHANSL = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
"""Key profiles of Krumhansl and Kessler (1982)."""
MODE_MARGIN = 0.08
"""Least difference of correlation between the best major and the best minor key to name one."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One row of the note table; parts are lists of (onset, duration, pitch), ticks and MIDI."""

    id: str
    source: str
    tune: str
    dance: str | None
    parts: tuple[tuple[tuple[int, int, int], ...], ...]


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """The plan of one clip."""

    piece: str
    attributes: Attributes
    events: tuple[tuple[float, float, int, int], ...]
    """(onset s, duration s, MIDI pitch, channel)."""
    velocity: int


def load_pieces(path: Path) -> list[Piece]:
    """Every piece of a note table. Raises FileNotFoundError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no note table at {path}: run `musicrl pretrain corpus`")
    pieces = []
    for row in pq.read_table(path).to_pylist():
        parts: dict[int, list[tuple[int, int, int]]] = {}
        columns = (row["part"], row["onset"], row["duration"], row["pitch"])
        for part, *note in zip(*columns, strict=True):
            parts.setdefault(part, []).append((note[0], note[1], note[2]))
        pieces.append(
            Piece(
                id=row["id"],
                source=row["source"],
                tune=row["tune"],
                dance=row["dance"],
                parts=tuple(tuple(parts[index]) for index in sorted(parts)),
            )
        )
    return pieces


def split_of(tune: str) -> str:
    """The split of a tune: 90 / 5 / 5 %, a pure function of its name."""
    bucket = int(hashlib.blake2b(tune.encode(), digest_size=4).hexdigest(), 16) % 100
    return "train" if bucket < 90 else ("validation" if bucket < 95 else "test")


def plan_excerpts(
    pieces: list[Piece], *, split: str, count: int, seconds: float, seed: int
) -> Iterator[Excerpt]:
    """`count` excerpts of the tunes of a split, balanced over sources and attributes.

    Raises ValueError when no tune of the split can fill a clip.
    """
    rng = Random(f"{seed}/{split}")
    by_source: dict[str, list[Piece]] = {}
    for piece in pieces:
        if split_of(piece.tune) == split:
            by_source.setdefault(piece.source, []).append(piece)
    sources, made, tries = sorted(by_source), 0, 0
    while made < count:
        tries += 1
        if tries > 1000 * (made + 10):
            raise ValueError(f"no piece of the {split} split fills {seconds} s")
        excerpt = _arrange(rng.choice(by_source[rng.choice(sources)]), seconds, rng)
        if excerpt is not None:
            made += 1
            yield excerpt


def _arrange(piece: Piece, seconds: float, rng: Random) -> Excerpt | None:
    instrument = rng.choice(list(INSTRUMENTS))
    tempo, loudness = rng.choice(list(ONSET_RATES)), rng.choice(list(PEAKS))
    texture = "four-part" if len(piece.parts) > 1 else rng.choice(_MELODY_TEXTURES)
    window = _window(piece, tempo, seconds, rng)
    if window is None:
        return None
    start, ticks_per_second = window
    length = seconds * ticks_per_second
    shift = _shift(piece, instrument, start, length, rng)
    melody = [
        ((o - start) / ticks_per_second, d / ticks_per_second * 0.95, p + shift, MELODY)
        for part in piece.parts
        for o, d, p in part
        if start <= o < start + length
    ]
    onsets = {round(onset, 3) for onset, _, _, _ in melody}
    if len(piece.parts) == 1 and len(onsets) < 4:
        return None
    tonic, mode = find_mode(melody)
    events = melody + _accompany(texture, melody, tonic, mode, ticks_per_second, seconds)
    attributes = Attributes(
        instrument=instrument,
        tempo=tempo,
        texture=texture,
        genre=piece.dance or SOURCE_GENRES[piece.source],
        loudness=loudness,
        mode=mode,
    )
    kept = tuple(
        (onset, max(min(length_s, seconds - onset), 0.05), pitch, channel)
        for onset, length_s, pitch, channel in sorted(events)
        if 0 <= onset < seconds and 24 <= pitch <= 103
    )
    velocity = rng.randint(100, 120) if loudness == "loud" else rng.randint(55, 70)
    return Excerpt(piece=piece.id, attributes=attributes, events=kept, velocity=velocity)


_MELODY_TEXTURES = ("solo", "solo", "drone", "chords", "drums")


def _window(piece: Piece, tempo: str, seconds: float, rng: Random) -> tuple[int, float] | None:
    """(first tick, ticks per second) of a window whose melody has the wanted onset rate."""
    top = piece.parts[0]
    onsets = [onset for onset, _, _ in top]
    starts = [onset for onset in onsets if onset % TICKS_PER_QUARTER == 0]
    if not starts:
        return None
    start = rng.choice(starts)
    count = max(round(rng.uniform(*ONSET_RATES[tempo]) * seconds), 4)
    first = bisect_left(onsets, start)
    if first + count >= len(onsets):
        return None
    ticks_per_second = (onsets[first + count] - start) / seconds
    quarters_per_second = ticks_per_second / TICKS_PER_QUARTER
    return (start, ticks_per_second) if 0.4 <= quarters_per_second <= 5.5 else None


def _shift(piece: Piece, instrument: str, start: int, length: float, rng: Random) -> int:
    """Semitones that move the excerpt's median pitch to where the instrument sounds well."""
    if len(piece.parts) > 1:
        return rng.randint(-5, 5)
    pitches = [p for o, _, p in piece.parts[0] if start <= o < start + length]
    target = rng.uniform(INSTRUMENTS[instrument].low, INSTRUMENTS[instrument].high)
    return round(target - median(pitches))


def find_mode(events: list[tuple[float, float, int, int]]) -> tuple[int, str | None]:
    """(tonic pitch class, mode) by duration-weighted key profiles; mode None when undecided."""
    histogram = np.zeros(12)
    for _, length, pitch, _ in events:
        histogram[pitch % 12] += length
    (major, major_tonic), (minor, minor_tonic) = (
        max((_fit(np.roll(profile, tonic), histogram), tonic) for tonic in range(12))
        for profile in (KRUMHANSL["major"], KRUMHANSL["minor"])
    )
    leader, tonic = ("major", major_tonic) if major >= minor else ("minor", minor_tonic)
    return tonic, leader if abs(major - minor) >= MODE_MARGIN else None


def _fit(profile: NDArray[np.float64], histogram: NDArray[np.float64]) -> float:
    """Correlation; 0 where the histogram is flat."""
    centred = [x - x.mean() for x in (profile, histogram)]
    scale = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / scale if scale > 1e-9 else 0.0


def _accompany(
    texture: str,
    melody: list[tuple[float, float, int, int]],
    tonic: int,
    mode: str | None,
    ticks_per_second: float,
    seconds: float,
) -> list[tuple[float, float, int, int]]:
    beat = TICKS_PER_QUARTER / ticks_per_second
    if texture == "drone":
        low = 36 + tonic + (12 if tonic < 6 else 0)
        return [(0.0, seconds, low, CHORDS), (0.0, seconds, low + 7, CHORDS)]
    if texture == "chords":
        return list(_chords(melody, tonic, mode or "major", 2 * beat, seconds))
    if texture == "drums":
        return list(_drums(beat, seconds))
    return []


def _chords(
    melody: list[tuple[float, float, int, int]], tonic: int, mode: str, step: float, seconds: float
) -> Iterator[tuple[float, float, int, int]]:
    """One of tonic, subdominant and dominant every two beats: the one most melody notes fit."""
    triad = (0, 4, 7) if mode == "major" else (0, 3, 7)
    for index in range(int(seconds / step) + 1):
        begin, end = index * step, (index + 1) * step
        degrees = [(pitch - tonic) % 12 for o, _, pitch, _ in melody if begin <= o < end]
        root = max((0, 5, 7), key=lambda r: sum((d - r) % 12 in triad for d in degrees))
        for interval in triad:
            yield begin, step - 0.03, 48 + (tonic + root) % 12 + interval, CHORDS


def _drums(beat: float, seconds: float) -> Iterator[tuple[float, float, int, int]]:
    """Closed hi-hat in quavers, bass drum and snare in turn, at a beat of 0.31 s to 0.71 s."""
    while beat < 0.31:
        beat *= 2
    while beat > 0.71:
        beat /= 2
    for index in range(int(2 * seconds / beat) + 1):
        yield index * beat / 2, 0.1, 42, DRUMS
        if index % 2 == 0:
            yield index * beat / 2, 0.1, 36 if index % 4 == 0 else 38, DRUMS
