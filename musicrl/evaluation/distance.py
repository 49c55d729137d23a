"""Distances between sets of clips, from their embeddings: Fréchet and kernel audio distance.

Pure functions of numpy arrays; which model embeds the clips is decided elsewhere. No clip is scored
here and no caption is read: a set may be near the real one although no clip fits its own prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

Matrix = NDArray[np.float64]
SCALE = 100.0
"""Of the kernel audio distance, as published."""
RESAMPLES = 100
"""Bootstrap samples of a standard error, which is then itself known to about 7 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """A distance between two sets of as many clips each."""

    value: float
    """NaN where the reference gives no scale."""
    standard_error: float
    """Standard deviation over bootstrap samples of the clips of both sets."""
    clips: int
    """Of each set."""

    def to_json(self) -> dict[str, float | int | None]:
        """NaN becomes null."""
        is_known = np.isfinite(self.value)
        return {
            "value": self.value if is_known else None,
            "standard_error": self.standard_error if is_known else None,
            "clips": self.clips,
        }

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f}" if np.isfinite(self.value) else "-"


def frechet_distance(reference: NDArray[np.floating], clips: NDArray[np.floating]) -> float:
    """|mu_a - mu_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^1/2) of embeddings [B, D] and [B', D]: the
    squared Fréchet distance of two normal distributions (Kilgour et al. 2019, arXiv 1812.08466).

    With few clips it is too large, by a bias that falls as 1 / B and that covariances of fewer
    clips than dimensions make worse; compare only distances of equally many clips, and read them
    beside that of two halves of the real ones. Raises ValueError for fewer than two clips.
    """
    a, b = _checked(reference, clips)
    shift = a.mean(0) - b.mean(0)
    left, right = _root(a), _root(b)
    overlap = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(shift @ shift + (left**2).sum() + (right**2).sum() - 2 * overlap)


def _root(rows: Matrix) -> Matrix:
    """R [min(B, D), D] with R^T R = the sample covariance.

    C_a C_b has the eigenvalues of (R_a R_b^T)(R_a R_b^T)^T, so that the trace of its root is the sum
    of the singular values of R_a R_b^T: real and never negative, also where a covariance is
    singular, and without the digits lost in a root of eigenvalues near zero.
    """
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    triangle: Matrix = np.linalg.qr(centred).R
    return triangle


def kernel_distance(reference: NDArray[np.floating], clips: NDArray[np.floating]) -> float:
    """100 x the unbiased squared MMD of embeddings [B, D] and [B', D] under the kernel
    exp(-d^2 / 2 h^2), h the median distance between clips of `reference` (Kernel Audio Distance,
    Chung et al. 2025, arXiv 2502.15602).

    It needs no normal distribution and has no bias with few clips: sets of one distribution give 0
    in the mean, thus often less. NaN where most clips of `reference` are the same, h then being 0.
    Raises ValueError for fewer than two clips.
    """
    a, b = _checked(reference, clips)
    kernels = _kernels(a, b)
    return _discrepancy(kernels, np.ones(len(a)), np.ones(len(b)))


def _kernels(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Of a with a, b with b (both with an empty diagonal) and a with b."""
    bandwidth = float(np.median(pdist(a))) or float("nan")
    within_a, within_b, between = (
        np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))
        for x, y in ((a, a), (b, b), (a, b))
    )
    np.fill_diagonal(within_a, 0.0)
    np.fill_diagonal(within_b, 0.0)
    return within_a, within_b, between


def _discrepancy(kernels: tuple[Matrix, Matrix, Matrix], a: Matrix, b: Matrix) -> float:
    """100 x squared MMD of clips taken a [B] and b [B'] times: means over pairs of different clips,
    as a clip drawn twice says nothing of how near two clips are."""
    within_a, within_b, between = kernels
    near_a = a @ within_a @ a / (a.sum() ** 2 - a @ a)
    near_b = b @ within_b @ b / (b.sum() ** 2 - b @ b)
    return float(SCALE * (near_a + near_b - 2 * (a @ between @ b) / (a.sum() * b.sum())))


def frechet(reference: NDArray[np.floating], clips: NDArray[np.floating]) -> Distance:
    """`frechet_distance` of equally many clips, with its standard error."""
    a, b = _equal(reference, clips)
    rng = np.random.default_rng(0)
    resampled = [
        frechet_distance(a[_drawn(rng, len(a))], b[_drawn(rng, len(b))]) for _ in range(RESAMPLES)
    ]
    return _distance(frechet_distance(a, b), resampled, len(a))


def kernel(reference: NDArray[np.floating], clips: NDArray[np.floating]) -> Distance:
    """`kernel_distance` of equally many clips, with its standard error at the same bandwidth."""
    a, b = _equal(reference, clips)
    kernels, rng, size = _kernels(a, b), np.random.default_rng(0), len(a)
    resampled = [
        _discrepancy(kernels, _times(rng, size), _times(rng, size)) for _ in range(RESAMPLES)
    ]
    return _distance(kernel_distance(a, b), resampled, size)


def _distance(value: float, resampled: list[float], clips: int) -> Distance:
    error = float(np.std(resampled, ddof=1))
    return Distance(value=value, standard_error=error, clips=clips)


def _drawn(rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    """As many clips, drawn with replacement: two different ones at least."""
    while len(set((drawn := rng.integers(size, size=size)).tolist())) < 2:
        continue
    return drawn


def _times(rng: np.random.Generator, size: int) -> Matrix:
    return np.bincount(_drawn(rng, size), minlength=size).astype(np.float64)


def _equal(a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
    """The first clips of both, as many as the smaller set has."""
    size = min(len(a), len(b))
    return _checked(a[:size], b[:size])


def _checked(a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a distance needs two clips or more a side, got {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"embeddings of {a.shape[1]} and {b.shape[1]} dimensions")
    return a.astype(np.float64), b.astype(np.float64)
