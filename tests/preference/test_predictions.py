"""Figures of predictors against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.preference.ablations import fit_slope
from musicrl.preference.predictions import clustered_error, predict, reliability

NO_PROMPTS = np.zeros(4, np.int32)


def test_accuracy_log_loss_and_calibration_by_hand() -> None:
    """Probabilities 3/4, 1/4, 1/2, 3/4 of the first clip; the first wins the first two."""
    margin = np.log([3.0, 1 / 3, 1.0, 3.0])
    found = predict(margin, np.array([True, True, False, False]), NO_PROMPTS, bins=2)
    assert found.accuracy == (1 + 0 + 0.5 + 0) / 4
    assert found.log_loss == pytest.approx(-np.log([3 / 4, 1 / 4, 1 / 2, 1 / 4]).mean())
    low, high = found.bins
    assert [low.predicted, high.predicted] == pytest.approx([0.375, 0.75])
    assert [(bin.observed, bin.count) for bin in found.bins] == [(0.5, 2), (0.5, 2)]
    assert found.calibration_error == pytest.approx((0.125 + 0.25) / 2)
    with pytest.raises(ValueError, match="no comparison"):
        predict(margin[:0], np.zeros(0, bool), NO_PROMPTS[:0])


def test_comparisons_of_one_prompt_count_together() -> None:
    """Two prompts of 1, 1 and 0, 0: sums of deviations of 1 and -1, sqrt(2 / 1 * 2) / 4."""
    values = np.array([1.0, 1.0, 0.0, 0.0])
    assert clustered_error(values, np.array([0, 0, 1, 1], np.int32)) == pytest.approx(0.5)
    apart = clustered_error(values, np.arange(4, dtype=np.int32))
    assert apart == pytest.approx(values.std(ddof=1) / 2)
    assert clustered_error(values, NO_PROMPTS) == apart  # one prompt: nothing to compare with
    assert clustered_error(values[:1], NO_PROMPTS[:1]) == 0


def test_a_predictor_that_knows_the_probabilities_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(40_000)
    for bin in reliability(probability, rng.random(40_000) < probability, bins=10):
        assert bin.observed == pytest.approx(bin.predicted, abs=0.02)


def test_the_slope_is_that_of_the_choices_model() -> None:
    rng = np.random.default_rng(1)
    difference = rng.normal(size=20_000)
    wins = rng.random(20_000) < 1 / (1 + np.exp(-1.7 * difference))
    assert fit_slope(difference, wins) == pytest.approx(1.7, abs=0.06)
    assert fit_slope(-difference, wins) == pytest.approx(-1.7, abs=0.06)
    assert fit_slope(np.zeros(4), wins[:4]) == 0
