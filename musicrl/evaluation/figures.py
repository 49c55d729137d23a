"""Figures: a mean with its standard error, over the clips that could be scored.

Pure functions of numpy arrays. A clip without a score (NaN) is left out and counted, never a zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The mean of a column."""

    mean: float
    """NaN when no clip was scored."""
    standard_error: float
    """Sample standard deviation / sqrt(count); NaN below two clips, or where none is known."""
    count: int
    """Clips that were scored."""

    def to_json(self) -> dict[str, float | int | None]:
        """NaN becomes null."""
        return {
            "mean": self.mean if np.isfinite(self.mean) else None,
            "standard_error": self.standard_error if np.isfinite(self.standard_error) else None,
            "count": self.count,
        }

    def __str__(self) -> str:
        if not self.count:
            return "-"
        if not np.isfinite(self.standard_error):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.standard_error:.3f}"


def figure(values: NDArray[np.floating]) -> Figure:
    """Mean and standard error of values [P] without its NaNs."""
    known = values[np.isfinite(values)].astype(np.float64)
    count = len(known)
    return Figure(
        mean=float(known.mean()) if count else float("nan"),
        standard_error=float(known.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan"),
        count=count,
    )


def paired(before: NDArray[np.floating], after: NDArray[np.floating]) -> Figure:
    """Mean of after - before over the clips scored both times, with the standard error of the
    difference (not that of two independent means)."""
    return figure(after.astype(np.float64) - before.astype(np.float64))
