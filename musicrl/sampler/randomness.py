"""Counter-based randomness: every number is a pure function of the numbers that name it.

(run seed, step, prompt, sample) names a sample's seed; (seed, grid step, stream) names its uniform.
So the same rollouts come out whatever the batch, the number of actors or the order of arrival. The
mixing is the finaliser of splitmix64 (Steele, Lea and Flood 2014), applied once per number.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def sample_seed(run_seed: int, step: int, prompt: int, sample: int) -> int:
    """The 64-bit stream of one sample of one prompt of one training step."""
    numbers = np.array([n & MASK for n in (run_seed, step, prompt, sample)], dtype=np.uint64)
    return int(reduce(_absorb, numbers[:, None], np.zeros(1, dtype=np.uint64))[0])


def uniforms(seeds: NDArray[np.uint64], step: ArrayLike, stream: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in the open interval (0, 1), one per seed, at a cell of the grid.

    `seeds` uint64 [B]; `step` and `stream` are numbers, or arrays that broadcast against `seeds`.
    """
    by_step = _absorb(np.asarray(seeds, dtype=np.uint64), np.asarray(step, dtype=np.uint64))
    bits = _absorb(by_step, np.asarray(stream, dtype=np.uint64))
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def noise_grid(
    seeds: NDArray[np.uint64], num_steps: int, num_streams: int, *, after: ArrayLike = 0
) -> NDArray[np.float64]:
    """The uniforms of every cell, [S, K, B], of the steps that follow step number `after` [B]."""
    steps = np.arange(num_steps)[:, None, None] + np.asarray(after)
    return uniforms(seeds, steps, np.arange(num_streams)[None, :, None])


def _absorb(state: NDArray[np.uint64], number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return _mix(_mix(state + np.uint64(GOLDEN)) ^ _mix(number * np.uint64(GOLDEN)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
