"""Means, standard errors and paired differences, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.evaluation.figures import figure, paired
from musicrl.evaluation.table import signed

NAN = float("nan")


def test_a_mean_and_its_standard_error() -> None:
    found = figure(np.array([1.0, 2.0, 3.0, 6.0]))
    # Deviations -2 -1 0 3: sum of squares 14, variance 14/3, over 4: 7/6.
    assert found.mean == 3.0
    assert found.standard_error == pytest.approx((7 / 6) ** 0.5)
    assert found.count == 4


def test_a_missing_score_is_left_out_not_a_zero() -> None:
    assert figure(np.array([1.0, NAN, 3.0])) == figure(np.array([1.0, 3.0]))
    assert figure(np.array([NAN, 4.0])).count == 1


def test_pairing_removes_what_the_prompts_have_in_common() -> None:
    before, after = np.array([0.0, 10.0, 20.0, 5.0]), np.array([1.0, 12.0, 21.0, NAN])
    change = paired(before, after)
    # Differences 1 2 1: mean 4/3, variance 1/3, standard error 1/3. Unpaired it would be 7.
    assert change.mean == pytest.approx(4 / 3)
    assert change.standard_error == pytest.approx(1 / 3)
    assert change.count == 3


def test_nothing_scored_is_null_in_json_and_a_dash_in_a_table() -> None:
    nothing = figure(np.array([NAN]))
    assert nothing.to_json() == {"mean": None, "standard_error": None, "count": 0}
    assert str(nothing) == "-"


def test_how_figures_are_printed() -> None:
    assert str(figure(np.array([1.0, 3.0]))) == "2.000 ± 1.000"
    assert signed(figure(np.array([1.0, 3.0]))) == "+2.000 ± 1.000"
    assert signed(figure(np.array([-1.0, -3.0]))) == "-2.000 ± 1.000"
    assert str(figure(np.array([0.5]))) == "0.500"
