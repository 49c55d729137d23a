"""Counter-based randomness: golden values, uniformity, independence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from musicrl.sampler.randomness import noise_grid, sample_seed, uniforms

MASK = (1 << 64) - 1


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def absorb(state: int, number: int) -> int:
    golden = 0x9E3779B97F4A7C15
    return mix(mix((state + golden) & MASK) ^ mix((number * golden) & MASK))


def test_seed_is_the_mix_of_its_numbers_in_unbounded_integers() -> None:
    state = 0
    for number in (3, 1, 4, 15):
        state = absorb(state, number)
    assert sample_seed(3, 1, 4, 15) == state


def test_uniforms_are_the_mix_of_seed_step_and_stream() -> None:
    seeds = np.array([0, 12345, MASK], dtype=np.uint64)
    wanted = [((absorb(absorb(int(s), 74), 3) >> 12) + 0.5) / 2**52 for s in seeds]
    assert uniforms(seeds, 74, 3).tolist() == wanted


def test_golden_values() -> None:
    assert sample_seed(0, 0, 0, 0) == 0x75A958C2F4E23342
    assert uniforms(np.array([1], dtype=np.uint64), 0, 0)[0] == 0.7908421272549578


def test_no_two_samples_of_a_run_share_a_seed() -> None:
    grid = [(r, i, p, g) for r in range(2) for i in range(20) for p in range(16) for g in range(8)]
    assert len({sample_seed(*numbers) for numbers in grid}) == len(grid)


def test_large_and_negative_run_seeds_are_taken_modulo_two_to_the_64() -> None:
    assert sample_seed(-1, 0, 0, 0) == sample_seed(MASK, 0, 0, 0)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Uniforms [S, K, B] of 64 samples with consecutive numbers."""
    seeds = [sample_seed(0, 0, p, g) for p in range(8) for g in range(8)]
    return noise_grid(np.array(seeds, dtype=np.uint64), 75, 5)


def test_noise_grid_is_the_uniform_of_each_cell() -> None:
    seeds = np.array([5, 9], dtype=np.uint64)
    grid = noise_grid(seeds, 3, 2)
    assert grid.shape == (3, 2, 2)
    for s in range(3):
        for k in range(2):
            assert np.array_equal(grid[s, k], uniforms(seeds, s, k))
    later = noise_grid(seeds, 1, 2, after=[0, 2])
    assert np.array_equal(later[0], np.stack([grid[0, :, 0], grid[2, :, 1]], axis=1))


def test_uniform_on_the_unit_interval(noise: np.ndarray) -> None:
    assert noise.min() > 0
    assert noise.max() < 1
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 0.01
    counts = np.histogram(noise, bins=100, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_along_each_axis_are_independent(noise: np.ndarray, axis: int) -> None:
    first = np.delete(noise, -1, axis).ravel()
    second = np.delete(noise, 0, axis).ravel()
    counts = np.histogram2d(first, second, bins=10, range=((0, 1), (0, 1)))[0]
    assert stats.chi2_contingency(counts).pvalue > 0.01
