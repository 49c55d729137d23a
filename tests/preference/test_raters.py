from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicrl.preference.raters import (
    Pairs,
    SimulatedRaterConfig,
    SimulatedRaters,
    draw_pairs,
    draw_tastes,
    scaled,
)

NOBODY = np.zeros((3, 4))
PAIRS = Pairs(first=np.array([0, 2]), second=np.array([1, 3]))


def config(**fields: float) -> SimulatedRaterConfig:
    plain = {"taste": 0.0, "position_bias": 0.0, "lapse": 0.0, "raters": 3, **fields}
    return SimulatedRaterConfig(**plain)  # type: ignore[arg-type]


def test_raters_who_are_alike_agree_by_the_square_of_their_certainty() -> None:
    shared = np.array([1.0, 0.0, 1.0, 0.0])
    raters = SimulatedRaters(shared, NOBODY, config(agreement=0.6), PAIRS)
    chance = (1 + np.sqrt(2 * 0.6 - 1)) / 2  # p**2 + (1 - p)**2 = 0.6
    assert raters.temperature == pytest.approx(1 / np.log(chance / (1 - chance)))
    assert raters.first_wins(PAIRS, np.array([0, 1])) == pytest.approx([chance, chance])
    assert raters.agreement(PAIRS) == pytest.approx(0.6)


def test_position_and_lapse_move_the_choice() -> None:
    shared = np.array([0.0, 0.0, 1.0, 0.0])
    raters = SimulatedRaters(
        shared, NOBODY, config(agreement=0.52, position_bias=0.4, lapse=0.1), PAIRS
    )
    raters.temperature = 2.0
    wins = raters.first_wins(PAIRS, np.array([0, 0]))
    assert wins[0] == pytest.approx(0.05 + 0.9 / (1 + np.exp(-0.4)))
    assert wins[1] == pytest.approx(0.05 + 0.9 / (1 + np.exp(-0.9)))


def test_agreement_is_that_of_drawn_choices() -> None:
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(30), 4)
    tastes = draw_tastes(rng.normal(size=(120, 5)), prompts, 20, rng)
    shared = scaled(rng.normal(size=120), prompts, "text")
    pairs = draw_pairs(prompts, 40_000, rng)
    settings = config(raters=20, taste=1.0, position_bias=0.5, lapse=0.05, agreement=0.6)
    raters = SimulatedRaters(shared, tastes, settings, pairs)
    assert raters.agreement(pairs) == pytest.approx(0.6, abs=1e-6)
    swapped = Pairs(first=pairs.second, second=pairs.first)
    one = rng.integers(20, size=40_000)
    other = (one + 1 + rng.integers(19, size=40_000)) % 20
    votes = []
    for who in (one, other):  # each hears the pair in an order of its own
        there = rng.random(40_000) < raters.first_wins(pairs, who)
        back = rng.random(40_000) >= raters.first_wins(swapped, who)
        votes.append(np.where(rng.random(40_000) < 0.5, there, back))
    assert (votes[0] == votes[1]).mean() == pytest.approx(0.6, abs=4 * 0.0025)


def test_tastes_cancel_and_deviate_by_one() -> None:
    rng = np.random.default_rng(2)
    tastes = draw_tastes(rng.normal(size=(12, 3)), np.repeat([0, 1, 2], 4), 7, rng)
    assert tastes.mean(0) == pytest.approx(np.zeros(12))
    assert tastes.std() == pytest.approx(1.0)


def test_scores_are_scaled_within_prompts() -> None:
    values = np.array([10.0, 12.0, -5.0, -3.0])
    assert scaled(values, np.array([0, 0, 1, 1]), "text") == pytest.approx([-1, 1, -1, 1])
    with pytest.raises(ValueError, match="'text' is the same for all clips of a prompt"):
        scaled(np.array([1.0, 1.0, 2.0]), np.array([0, 0, 1]), "text")


def test_an_agreement_out_of_reach_says_how_far_one_gets() -> None:
    quarrel = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    settings = config(taste=1.0, raters=2, agreement=0.6)
    with pytest.raises(ValueError, match=r"agree on 0\.000 of the pairs"):
        SimulatedRaters(np.zeros(4), quarrel, settings, PAIRS)


@given(
    prompts=st.lists(st.integers(0, 5), min_size=2, max_size=20),
    seed=st.integers(0, 100),
)
def test_pairs_are_two_clips_of_one_prompt(prompts: list[int], seed: int) -> None:
    numbers = np.array(prompts)
    can_pair = {prompt for prompt in prompts if prompts.count(prompt) > 1}
    if not can_pair:
        with pytest.raises(ValueError, match="no prompt has two clips"):
            draw_pairs(numbers, 5, np.random.default_rng(seed))
        return
    pairs = draw_pairs(numbers, 300, np.random.default_rng(seed))
    assert (pairs.first != pairs.second).all()
    assert (numbers[pairs.first] == numbers[pairs.second]).all()
    assert set(numbers[pairs.first].tolist()) == can_pair


def test_every_ordered_pair_is_as_likely() -> None:
    pairs = draw_pairs(np.array([0, 0, 0]), 60_000, np.random.default_rng(0))
    counts = np.bincount(3 * pairs.first + pairs.second, minlength=9)
    assert counts[[0, 4, 8]].sum() == 0
    assert counts[[1, 2, 3, 5, 6, 7]] == pytest.approx(np.full(6, 10_000), abs=450)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"raters": 1}, "raters must be 2 or more, got 1"),
        ({"agreement": 0.5}, r"agreement must be between 0\.5 and 1, got 0\.5"),
        ({"lapse": 1.0}, "lapse must be 0 or more and below 1"),
        ({"weights": {}, "taste": 0.0}, "need a weight or a taste"),
    ],
)
def test_settings_that_are_refused(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config(**fields)
