"""What a policy kept of music: changes by hand, their errors, and what is said of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import t as student

from musicrl.evaluation.clipset import ClipSet, SetFigures
from musicrl.evaluation.distance import Distance
from musicrl.evaluation.diversity import cosine_spread
from musicrl.evaluation.heldout import EvaluationResult
from musicrl.evaluation.kept import (
    MUSIC,
    distance_change,
    kept,
    kept_table,
    of_columns,
    of_embeddings,
    paired_figures,
    passed_over,
    together,
)
from musicrl.types import Prompt

Row = tuple[EvaluationResult, ClipSet]
NAN = np.nan


def row(reward: list[float], variety: list[float], note: list[float], seed: int = 0) -> Row:
    """Five clips, with vectors of a random direction each."""
    prompts = tuple(Prompt(id=str(i), text=f"tune {i}") for i in range(5))
    columns = {"reward": np.array(reward), "judge/pitch-variety": np.array(variety)}
    vectors = np.random.default_rng(seed).normal(size=(5, 3))
    clips = ClipSet(embeddings={"tagger": vectors}, columns={"longest-note": np.array(note)})
    return EvaluationResult(prompts=prompts, columns=columns), clips


BEFORE = row([0.1, 0.2, 0.3, 0.4, NAN], [1.5, 1.6, 1.7, 1.4, 1.5], [1.0, 1.2, 1.1, 0.9, 1.0])


def test_a_reward_that_rises_while_melody_falls_is_said_in_words_and_in_json() -> None:
    after = row([0.3, 0.5, 0.5, 0.7, 0.6], [1.0, 1.2, 1.1, 0.8, 1.1], [2.0, 2.3, 2.1, 2.0, 2.2])
    found = kept(paired_figures(BEFORE, after))
    assert found.reward is not None
    assert found.reward.change.mean == pytest.approx(0.25)
    reach = student.ppf(0.975, 3) * np.std([0.2, 0.3, 0.2, 0.3], ddof=1) / 2
    assert found.reward.interval == pytest.approx((0.25 - reach, 0.25 + reach))
    saved = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert saved["worse"] == ["longest-note", "judge/pitch-variety"]
    assert saved["reward_rose_while_music_fell"]
    assert saved["music"]["judge/pitch-variety"]["verdict"] == "worse"
    assert saved["music"]["longest-note"]["change"]["mean"] == pytest.approx(1.08)
    said = found.said("R")
    assert said.startswith("R: the reward rose while music FELL: one pitch class held or repeated")
    assert "variety of pitch classes, nats: 1.540 to 1.040 (-0.500, -0.624 to -0.376)" in said
    _, lines = kept_table({"R": found})
    assert [line[0] for line in lines if line[2].endswith("WORSE")] == [
        MUSIC[name].said for name in saved["worse"]
    ]


def test_what_moves_within_its_interval_is_neither() -> None:
    after = row([0.2, 0.1, 0.4, 0.3, 0.5], [1.6, 1.5, 1.6, 1.5, 1.4], [1.1, 1.1, 1.2, 0.8, 1.0])
    found = kept(paired_figures(BEFORE, after))
    assert not found.worse
    assert not found.better
    assert not found.to_json()["reward_rose_while_music_fell"]
    assert found.said("R") == (
        "R: no rise of the reward is shown. none of 3 figures of music is worse than the base's"
    )
    assert passed_over({"R": found}) == [
        asked.said
        for name, asked in MUSIC.items()
        if name not in ("judge/pitch-variety", "longest-note", "spread/tagger")
    ]


def test_music_that_falls_without_a_gain_is_said_too() -> None:
    after = row([0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 1.2, 1.1, 0.8, 1.1], [0.5, 0.7, 0.6, 0.4, 0.5])
    found = kept(paired_figures(BEFORE, after))
    assert [change.asked.said for change in found.better] == [MUSIC["longest-note"].said]
    assert found.said("R").startswith("R: no rise of the reward is shown and music FELL: variety")
    assert not found.to_json()["reward_rose_while_music_fell"]


def test_clips_without_a_score_in_either_row_are_left_out() -> None:
    pair = of_columns(np.array([1.0, NAN, 3.0, 5.0]), np.array([2.0, 9.0, NAN, 7.0]))
    assert (pair.before, pair.after, pair.change.count) == (3.0, 4.5, 2)
    assert pair.change.mean == 1.5
    nothing = of_columns(np.array([NAN]), np.array([1.0]))
    assert not kept({"judge/sounding": nothing, "reward": nothing}).music


def test_one_prompt_shows_nothing() -> None:
    found = kept({"judge/sounding": of_columns(np.array([1.0]), np.array([0.0]))})
    change = found.music["judge/sounding"]
    assert change.verdict == "not shown"
    assert change.to_json()["ci95"] is None


def test_the_spread_of_two_policies_is_that_of_each() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    after[2] = NAN
    pair = of_embeddings(before, after)
    assert pair is not None
    rest = [0, 1, 3, 4, 5]
    assert pair.before == pytest.approx(cosine_spread(before[rest]).mean)
    assert pair.after == pytest.approx(cosine_spread(after[rest]).mean)
    assert pair.change.mean == pytest.approx(pair.after - pair.before)
    assert of_embeddings(before[:2], after[:2]) is None


def test_the_error_of_a_change_of_spread_is_that_of_fresh_prompts() -> None:
    """Clips of both policies share their prompt; the error knows it."""
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(150):
        prompts = rng.normal(size=(60, 5)) + 0.5
        noise = [rng.normal(size=(60, 5)) * 0.5 for _ in range(2)]
        pair = of_embeddings(prompts + noise[0], prompts + 0.6 + noise[1])
        assert pair is not None
        changes.append(pair.change)
    spread = np.std([change.mean for change in changes])
    assert 1 / 1.3 < np.mean([change.standard_error for change in changes]) / spread < 1.3


def test_a_prompt_of_several_seeds_is_one_unit() -> None:
    first = of_columns(np.array([0.0, 0.0, NAN]), np.array([1.0, 2.0, 3.0]))
    second = of_columns(np.array([0.0, 0.0, 0.0]), np.array([3.0, NAN, NAN]))
    found = together([first, second])
    np.testing.assert_array_equal(found.parts, [2.0, 2.0, NAN])
    assert found.change.standard_error == 0
    assert (found.before, found.after) == (0.0, 2.25)


def test_a_distance_that_grows_is_worse() -> None:
    def at(value: float) -> SetFigures:
        distance = Distance(value=value, standard_error=0.3, clips=50)
        return SetFigures(clips=50, distances={"frechet/tagger": distance}, diversity={})

    (near,) = distance_change(at(2.0), at(2.5)).values()
    (far,) = distance_change(at(2.0), at(4.0)).values()
    assert (near.verdict, far.verdict) == ("not shown", "worse")
    assert far.change.standard_error == pytest.approx(0.3 * np.sqrt(2))
    without = SetFigures(clips=50, distances={}, diversity={})
    assert distance_change(without, at(2.0)) == {}
