"""Distances between sets: by hand, against a matrix root, and on distributions that are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import sqrtm

from musicrl.evaluation.distance import (
    Distance,
    frechet,
    frechet_distance,
    kernel,
    kernel_distance,
)

Measure = Callable[[np.ndarray, np.ndarray], Distance]


def test_the_frechet_distance_of_diagonal_gaussians() -> None:
    """Corners of boxes: means 0 and (3, 4); variances s^2 x 4/3 for four corners at +-s."""
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float64)
    wide = corners * [2.0, 5.0] + [3.0, 4.0]
    # 9 + 16 + 4/3 x ((2 - 1)^2 + (5 - 1)^2)
    assert frechet_distance(corners, wide) == pytest.approx(25 + 4 / 3 * 17)
    assert frechet_distance(wide, corners) == pytest.approx(25 + 4 / 3 * 17)


@pytest.mark.parametrize("clips", [40, 5])
def test_the_frechet_distance_is_that_of_the_matrix_root(clips: int) -> None:
    """40 clips of 6 dimensions, and 5, whose covariances are singular."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(clips, 6)), rng.normal(size=(clips, 6)) @ rng.normal(size=(6, 6))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    root = sqrtm(cov_a @ cov_b + 1e-13 * np.eye(6)).real
    slow = shift + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(slow, abs=1e-4)


def test_a_set_is_at_no_frechet_distance_from_itself() -> None:
    rows = np.random.default_rng(2).normal(size=(30, 50))
    assert frechet_distance(rows, rows[::-1]) == pytest.approx(0, abs=1e-10)


def test_the_kernel_distance_of_two_points_by_hand() -> None:
    """Reference 0 and 2 (median distance 2), clips 1 and 3: exp(-d^2 / 8)."""
    near, far = np.exp(-1 / 8), np.exp(-9 / 8)
    between = (near + far + near + near) / 4
    expected = 100 * (np.exp(-4 / 8) + np.exp(-4 / 8) - 2 * between)
    found = kernel_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]]))
    assert found == pytest.approx(expected)


def test_the_kernel_distance_of_one_distribution_is_zero_in_the_mean() -> None:
    rng = np.random.default_rng(3)
    found = [kernel_distance(*rng.normal(size=(2, 10, 4))) for _ in range(400)]
    error = np.std(found) / 20
    assert abs(np.mean(found)) < 3 * error
    assert min(found) < 0


@pytest.mark.parametrize("measure", [frechet, kernel])
def test_more_noise_is_further_away(measure: Measure) -> None:
    rng = np.random.default_rng(4)
    reference, clean = rng.normal(size=(2, 200, 8))
    noise = rng.normal(size=(200, 8))
    found = [measure(reference, clean + level * noise).value for level in (0.0, 1.0, 2.0, 4.0)]
    assert found == sorted(found)
    assert found[3] > 5 * abs(found[0])


@pytest.mark.parametrize("measure", [frechet, kernel])
def test_the_standard_error_is_the_spread_over_fresh_sets(measure: Measure) -> None:
    """Within a factor of 1.6 where the sets differ."""
    rng = np.random.default_rng(5)
    pairs = [(rng.normal(size=(50, 3)), 1 + rng.normal(size=(50, 3))) for _ in range(40)]
    found = [measure(a, b) for a, b in pairs]
    spread = np.std([distance.value for distance in found])
    error = np.mean([distance.standard_error for distance in found])
    assert 1 / 1.6 < error / spread < 1.6


def test_both_sides_have_as_many_clips() -> None:
    rng = np.random.default_rng(6)
    reference, clips = rng.normal(size=(30, 3)), rng.normal(size=(12, 3))
    assert frechet(reference, clips) == frechet(reference[:12], clips)
    assert kernel(reference, clips).clips == 12


def test_what_has_no_distance_is_refused() -> None:
    one, two = np.ones((1, 2)), np.array([[0.0, 1.0], [1.0, 0.0]])
    for measure in (frechet, kernel, frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="two clips or more a side, got"):
            measure(one, two)
        with pytest.raises(ValueError, match="2 and 1 dimensions"):
            measure(two, two[:, :1])


def test_a_reference_of_one_sound_gives_no_kernel_distance() -> None:
    found = kernel(np.ones((3, 2)), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert found.to_json() == {"value": None, "standard_error": None, "clips": 2}
    assert str(found) == "-"
