"""Win rates against values computed by hand, and against a slow and obvious bootstrap."""

import math

import numpy as np
import pytest

from musicrl.evaluation.winrate import Marks, interval, opinion, signed_rank, win_rate


def marks(a: list[float], b: list[float], prompt: list[int]) -> Marks:
    return Marks(a=np.array(a, float), b=np.array(b, float), prompt=np.array(prompt))


def test_wins_ties_and_losses_by_hand() -> None:
    found = win_rate(marks([4, 3, 2, 5, math.nan], [3, 3, 4, 1, 2], [0, 0, 1, 2, 2]))
    assert (found.wins, found.ties, found.losses, found.unmarked) == (2, 1, 1, 1)
    assert found.rate == pytest.approx(2 / 3)  # the tie and the unmarked clip do not count


def test_the_papers_shares_give_the_papers_win_rate() -> None:
    # Figure 1: R against MusicLM, 65.0 % wins, 22.1 % ties, 12.9 % losses of 303 ratings.
    a = [2.0] * 197 + [1.0] * 67 + [0.0] * 39
    found = win_rate(marks(a, [1.0] * 303, [i // 3 for i in range(303)]))
    assert found.rate == pytest.approx(0.83, abs=0.006)
    assert found.low < found.rate < found.high


def test_the_other_side_is_the_mirror_image() -> None:
    rng = np.random.default_rng(3)
    a, b, prompt = rng.integers(1, 6, 60), rng.integers(1, 6, 60), np.arange(60) // 3
    one = win_rate(Marks(a=a.astype(float), b=b.astype(float), prompt=prompt))
    other = win_rate(Marks(a=b.astype(float), b=a.astype(float), prompt=prompt))
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.low == pytest.approx(1 - other.high)
    assert one.p_value == pytest.approx(other.p_value)


def test_two_prompts_have_a_known_interval() -> None:
    # Samples of two prompts, one won and one lost: both won 1/4, both lost 1/4, else even.
    assert interval(np.array([1.0, -1.0]), np.array([0, 1])) == (0.0, 1.0)
    assert interval(np.array([1.0, 1.0]), np.array([0, 1])) == (1.0, 1.0)


def test_interval_resamples_prompts_and_not_marks() -> None:
    outcome = np.repeat(np.random.default_rng(0).choice([1.0, -1.0], 30), 10)
    whole = interval(outcome, np.repeat(np.arange(30), 10))
    single = interval(outcome, np.arange(300))
    assert whole[1] - whole[0] > 2 * (single[1] - single[0])  # about sqrt(10) times


def test_interval_equals_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(5)
    outcome, prompt = rng.choice([1.0, 0.0, -1.0], 40), np.arange(40) // 2
    draws, rates = np.random.default_rng(7), []
    for _ in range(4000):
        picked = np.concatenate([outcome[prompt == p] for p in draws.integers(20, size=20)])
        rates.append((picked > 0).sum() / (picked != 0).sum())
    slow = np.quantile(rates, [0.025, 0.975])
    assert interval(outcome, prompt) == pytest.approx(tuple(slow), abs=0.02)


def test_signed_rank_by_hand() -> None:
    # Differences of the prompts 1, 2, 3, 4, 5: all of one sign, 2 of the 2^5 arrangements.
    five = marks([2, 3, 4, 5, 6], [1, 1, 1, 1, 1], [0, 1, 2, 3, 4])
    assert signed_rank(five) == pytest.approx(2 / 32)
    # Prompt 0 is even over its two marks: three prompts are left.
    even = marks([1, 2, 3, 4, 5], [2, 1, 1, 1, 1], [0, 0, 1, 2, 3])
    assert signed_rank(even) == pytest.approx(2 / 8)


def test_ties_alone_have_no_rate_and_no_p_value() -> None:
    found = win_rate(marks([3, 3], [3, 3], [0, 1]))
    assert found.ties == 2
    assert found.to_json() == {
        "wins": 0,
        "ties": 2,
        "losses": 0,
        "win_rate": None,
        "ci95": None,
        "p_value": None,
        "unmarked": 0,
    }
    assert str(found) == "-"


def test_opinion_by_hand() -> None:
    found = opinion(np.array([1.0, 3.0, 4.0, math.nan]), np.array([0, 0, 1, 1]))
    assert found.mean == pytest.approx(8 / 3)
    assert found.count == 3
    assert found.standard_error == pytest.approx(1.0)  # prompts' means 2 and 4


def test_marks_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2"):
        marks([1, 2], [1, 2], [0])
