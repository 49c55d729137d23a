"""What a caption may claim, and the words for it.

An excerpt carries attributes that are true of what is heard; a caption is one of many wordings of
some or all of them. Nothing here knows audio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """A General-MIDI program and the range where it sounds like itself."""

    program: int
    low: int
    high: int
    chords: int
    """Program that accompanies it."""


INSTRUMENTS: Mapping[str, Instrument] = {
    "piano": Instrument(program=0, low=62, high=76, chords=0),
    "harpsichord": Instrument(program=6, low=60, high=74, chords=6),
    "organ": Instrument(program=19, low=60, high=74, chords=19),
    "acoustic guitar": Instrument(program=25, low=57, high=69, chords=25),
    "electric guitar": Instrument(program=30, low=57, high=69, chords=48),
    "cello": Instrument(program=42, low=47, high=58, chords=48),
    "harp": Instrument(program=46, low=60, high=74, chords=46),
    "choir": Instrument(program=52, low=58, high=69, chords=52),
    "trumpet": Instrument(program=56, low=62, high=72, chords=48),
    "flute": Instrument(program=73, low=70, high=81, chords=48),
    "marimba": Instrument(program=12, low=60, high=74, chords=12),
    "music box": Instrument(program=10, low=70, high=81, chords=10),
}
"""Median pitch of the melody is moved into [low, high]."""

ONSET_RATES: Mapping[str, tuple[float, float]] = {
    "slow": (1.0, 1.7),
    "moderate": (2.6, 3.6),
    "fast": (5.2, 7.5),
}
"""Onsets of the melody a second; the gaps between the ranges keep the words unambiguous."""

PEAKS: Mapping[str, float] = {"soft": 0.22, "loud": 0.75}
"""Peak level of a clip, full scale = 1."""

TEXTURES = ("solo", "drone", "chords", "drums", "four-part")
GENRES = (
    "reel",
    "jig",
    "slip jig",
    "hornpipe",
    "strathspey",
    "clog",
    "fling",
    "air",
    "waltz",
    "march",
    "fiddle tune",
    "irish tune",
    "old air",
    "chorale",
)
SOURCE_GENRES: Mapping[str, str] = {
    "ryan": "fiddle tune",
    "oneill": "irish tune",
    "aird": "old air",
    "bach": "chorale",
}
"""Genre of a piece whose header names no dance."""

PHRASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "tempo": {
        "slow": ("slow", "slow paced", "unhurried"),
        "moderate": ("moderate", "medium tempo", "walking pace"),
        "fast": ("fast", "quick", "rapid"),
    },
    "loudness": {"soft": ("soft", "quiet", "gentle"), "loud": ("loud", "forceful", "strong")},
    "texture": {
        "solo": ("solo", "unaccompanied", "alone"),
        "drone": ("with a drone", "over a held drone", "above a droning fifth"),
        "chords": ("with chords", "with chordal accompaniment", "over simple chords"),
        "drums": ("with drums", "with a drum beat", "over drums"),
        "four-part": ("in four parts", "in four voices", "harmonised in four parts"),
    },
    "genre": {
        "fiddle tune": ("fiddle tune", "dance tune"),
        "irish tune": ("irish tune", "irish melody"),
        "old air": ("old air", "old song tune"),
        "chorale": ("chorale", "hymn"),
    },
    "mode": {
        "major": ("in a major key", "in major"),
        "minor": ("in a minor key", "in minor"),
    },
}
CHANCES: Mapping[str, float] = {
    "loudness": 0.6,
    "tempo": 0.8,
    "genre": 0.7,
    "instrument": 0.92,
    "texture": 0.7,
    "mode": 0.5,
}
"""Probability that a partial caption mentions an attribute."""


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What is true of an excerpt."""

    instrument: str
    tempo: str
    texture: str
    genre: str
    loudness: str
    mode: str | None
    """None where the excerpt's own notes do not settle it; captions then say nothing."""

    def as_row(self) -> dict[str, str | None]:
        return asdict(self)

    @property
    def combination(self) -> frozenset[tuple[str, str]]:
        """Names and values of what is known."""
        return frozenset((name, value) for name, value in self.as_row().items() if value)


UNKNOWN = Attributes(instrument="", tempo="", texture="", genre="", loudness="", mode=None)
"""Of a clip that only a caption describes; no attribute has this value."""


def caption(attributes: Attributes, rng: Random, *, complete: bool = False) -> str:
    """One true wording; a partial one leaves attributes out unless `complete`."""
    said = [
        name
        for name, chance in CHANCES.items()
        if getattr(attributes, name) is not None and (complete or rng.random() < chance)
    ]
    words = {name: _phrase(name, getattr(attributes, name), rng) for name in said}
    words["genre"] = words.get("genre") or rng.choice(("piece", "tune", "music"))
    if rng.random() < 0.3:
        order = ("instrument", "texture", "genre", "tempo", "loudness", "mode")
        return ", ".join(words[name] for name in order if name in words)
    if "instrument" in words:
        words["instrument"] = rng.choice(("played on ", "for ", "on ")) + words["instrument"]
    order = ("loudness", "tempo", "genre", "instrument", "texture", "mode")
    return " ".join(words[name] for name in order if name in words)


def _phrase(name: str, value: str, rng: Random) -> str:
    return rng.choice(PHRASES.get(name, {}).get(value, (value,)))
