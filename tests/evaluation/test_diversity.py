"""Diversity by hand: of tokens, of vectors and of tones."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.evaluation.diversity import (
    clipped,
    cosine_spread,
    cosine_spread_within,
    distinct,
    longest_note,
    longest_run,
    longest_true,
    silent,
    token_entropy,
)
from musicrl.types import Clips

RATE = 16_000


def tones(*parts: tuple[float, float]) -> np.ndarray:
    """(Hz, s) after each other; 0 Hz is silence."""
    return np.concatenate(
        [0.3 * np.sin(2 * np.pi * hertz * np.arange(round(s * RATE)) / RATE) for hertz, s in parts]
    ).astype(np.float32)


def clips(*rows: np.ndarray) -> Clips:
    return Clips(audio=np.stack(rows).astype(np.float32), sample_rate=RATE)


def test_distinct_grams_are_counted_over_the_whole_set() -> None:
    tokens = np.array([[0, 0, 1], [0, 0, 2]], np.int16)
    assert distinct(tokens, 1) == 3 / 6
    assert distinct(tokens, 2) == 3 / 4  # 00 01 00 02
    assert np.isnan(distinct(tokens, 4))


def test_the_entropy_of_the_tokens() -> None:
    assert token_entropy(np.array([[3, 3], [3, 3]])) == 0.0
    assert token_entropy(np.array([[0, 0], [7, 7]])) == pytest.approx(np.log(2))
    skewed = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert token_entropy(np.array([[1, 1, 1, 5]])) == pytest.approx(skewed)


def test_the_spread_of_three_vectors() -> None:
    """Distances 1, 1 and 2; the clips' own means are 1.5, 1 and 1.5."""
    found = cosine_spread(np.array([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]]))
    assert found.mean == pytest.approx(4 / 3)
    assert found.standard_error == pytest.approx(2 * np.sqrt(1 / 12) / np.sqrt(3))
    assert found.count == 3
    assert str(cosine_spread(np.ones((2, 3)))) == "0.000"
    assert cosine_spread(np.ones((1, 3))).to_json()["mean"] is None


def test_the_error_of_the_spread_is_that_of_fresh_sets() -> None:
    rng = np.random.default_rng(0)
    found = [cosine_spread(0.5 + rng.normal(size=(40, 5))) for _ in range(100)]
    spread = np.std([f.mean for f in found])
    assert 1 / 1.4 < np.mean([f.standard_error for f in found]) / spread < 1.4


def test_the_spread_within_prompts_is_their_mean() -> None:
    rows = np.array([[1.0, 0], [1.0, 0], [0, 1.0], [0, 2.0], [-1.0, 0]])
    found = cosine_spread_within(rows, ["a", "a", "c", "b", "b"])
    assert found.mean == pytest.approx(0.5)  # 0 in a, 1 in b; c is alone
    assert found.count == 2
    assert found.standard_error == pytest.approx(0.5)


def test_the_longest_run() -> None:
    assert longest_run(np.array([1, 1, 2, 2, 2, 1, 1])) == 3
    assert longest_run(np.array([4])) == 1
    assert longest_run(np.array([], np.int64)) == 0
    assert longest_true(np.array([True, False, True, True])) == 2
    assert longest_true(np.array([False, False])) == 0


def test_the_longest_note_of_a_clip() -> None:
    """Octaves are one class; silence neither ends a run nor adds to it."""
    changing = tones((440.0, 0.5), (659.3, 1.5), (523.3, 1.0))
    repeated = tones((440.0, 0.5), (0.0, 1.0), (880.0, 0.5), (659.3, 1.0))
    found = longest_note(clips(changing, repeated, tones((0.0, 3.0))))
    np.testing.assert_allclose(found[:2], [1.5, 1.15], atol=0.2)
    assert found[2] == 0


def test_silent_and_clipped_clips() -> None:
    quiet, lone, flat, square = np.zeros((4, RATE), np.float32)
    lone[50:52] = 1.0
    flat[50:53] = -1.0
    square[:] = np.where(np.arange(RATE) % 2, 1.0, -1.0)
    broken = np.full(RATE, np.nan, np.float32)
    heard = clips(quiet, tones((440.0, 1.0)), lone, flat, square, broken)
    np.testing.assert_array_equal(clipped(heard), [0, 0, 0, 1, 0, np.nan])
    np.testing.assert_array_equal(silent(heard)[[0, 1, 4, 5]], [1, 0, 0, np.nan])
    assert np.isnan(longest_note(heard)[5])
