"""Captions are true: every claim is checked against the notes that are rendered."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from musicrl.pretrain.attributes import ONSET_RATES, PHRASES, Attributes, caption
from musicrl.pretrain.corpus import SOURCES
from musicrl.pretrain.excerpts import (
    CHORDS,
    DRUMS,
    MELODY,
    Excerpt,
    Piece,
    find_mode,
    load_pieces,
    plan_excerpts,
    split_of,
)
from musicrl.pretrain.world import NOTES

SECONDS = 6.0


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    return load_pieces(NOTES)


@pytest.fixture(scope="module")
def excerpts(pieces: list[Piece]) -> list[Excerpt]:
    return list(plan_excerpts(pieces, split="train", count=150, seconds=SECONDS, seed=1))


def test_the_shipped_corpus_has_sources_and_licences(pieces: list[Piece]) -> None:
    assert len(pieces) > 4000
    assert {piece.source for piece in pieces} == set(SOURCES)
    assert all("public domain" in source.licence for source in SOURCES.values())


def test_no_tune_is_in_two_splits(pieces: list[Piece]) -> None:
    by_split = {
        split: {p.tune for p in pieces if split_of(p.tune) == split}
        for split in ("train", "validation", "test")
    }
    assert sum(len(tunes) for tunes in by_split.values()) == len({p.tune for p in pieces})
    assert len(by_split["test"]) > 100


def test_settings_of_one_melody_share_a_tune(pieces: list[Piece]) -> None:
    """Recomputed here: pieces whose first 12 notes move alike are never in two splits."""
    first: dict[tuple[int, ...], str] = {}
    for piece in pieces:
        pitches = [pitch for _, _, pitch in piece.parts[0]][:12]
        key = tuple(np.diff(pitches).tolist())
        assert first.setdefault(key, piece.tune) == piece.tune


def test_tempo_words_are_true_of_the_melody(excerpts: list[Excerpt]) -> None:
    for excerpt in excerpts:
        if excerpt.attributes.texture == "four-part":
            continue
        onsets = {round(onset, 3) for onset, _, _, channel in excerpt.events if channel == MELODY}
        low, high = ONSET_RATES[excerpt.attributes.tempo]
        assert low - 0.4 <= len(onsets) / SECONDS <= high + 0.4


def test_textures_are_true_of_the_channels(excerpts: list[Excerpt]) -> None:
    expected = {
        "solo": {MELODY},
        "four-part": {MELODY},
        "drone": {MELODY, CHORDS},
        "chords": {MELODY, CHORDS},
        "drums": {MELODY, DRUMS},
    }
    for excerpt in excerpts:
        channels = {channel for _, _, _, channel in excerpt.events}
        assert channels == expected[excerpt.attributes.texture]
        if excerpt.attributes.texture == "four-part":
            at_once = max(
                sum(o <= t < o + d for o, d, _, _ in excerpt.events)
                for t in np.linspace(0.05, SECONDS, 100)
            )
            assert at_once >= 3


def test_events_lie_inside_the_clip(excerpts: list[Excerpt]) -> None:
    for excerpt in excerpts:
        assert all(0 <= o < SECONDS and 24 <= p <= 103 for o, _, p, _ in excerpt.events)


def test_modes_of_plain_scales() -> None:
    major = [(float(i), 1.0, p, 0) for i, p in enumerate([60, 62, 64, 65, 67, 69, 71, 72, 67, 60])]
    minor = [(float(i), 1.0, p, 0) for i, p in enumerate([57, 59, 60, 62, 64, 65, 68, 69, 64, 57])]
    assert find_mode(major) == (0, "major")
    assert find_mode(minor) == (9, "minor")
    chromatic = [(float(i), 1.0, 60 + i, 0) for i in range(12)]
    assert find_mode(chromatic)[1] is None


def test_plans_are_a_function_of_the_seed(pieces: list[Piece]) -> None:
    def plan(seed: int) -> list[Excerpt]:
        return list(plan_excerpts(pieces, split="test", count=5, seconds=SECONDS, seed=seed))

    assert plan(3) == plan(3)
    assert plan(3) != plan(4)


def test_captions_are_a_function_of_the_seed_in_any_process() -> None:
    """Python's string hashes differ between processes; captions must not."""
    code = (
        "from random import Random; from musicrl.pretrain.attributes import *; "
        "a = Attributes(instrument='harp', tempo='slow', texture='drone', genre='jig', "
        "loudness='soft', mode='minor'); "
        "print([caption(a, Random(s), complete=s % 2 == 0) for s in range(20)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_captions_say_only_what_is_true() -> None:
    attributes = Attributes(
        instrument="harp",
        tempo="slow",
        texture="drone",
        genre="jig",
        loudness="soft",
        mode=None,
    )
    false = {
        phrase
        for name, values in PHRASES.items()
        for value, phrases in values.items()
        if value != getattr(attributes, name)
        for phrase in phrases
    }
    texts = {caption(attributes, Random(seed)) for seed in range(300)}
    assert len(texts) > 80
    for text in texts:
        words = f" {text.replace(',', '')} "
        assert not [phrase for phrase in false if f" {phrase} " in words]
    complete = caption(attributes, Random(0), complete=True)
    assert "harp" in complete
    assert "jig" in complete
    assert "major" not in complete
