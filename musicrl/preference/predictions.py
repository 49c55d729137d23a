"""What a predictor of choices is worth: accuracy, log-loss and calibration, by its margins.

A margin is the predictor's log-odds that the first clip of a pair is preferred. Pure numpy: knows
neither models nor files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
COIN = float(np.log(2))
"""Log-loss of a fair coin, nats."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Comparisons whose predicted probability is alike."""

    predicted: float
    """Mean probability that the first clip is preferred."""
    observed: float
    """Share of them in which it was."""
    count: int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How well a predictor foretold the choices in some comparisons."""

    accuracy: float
    """Share of choices for the clip of the higher score; a tie counts half."""
    standard_error: float
    """Of the accuracy, over prompts: comparisons of one prompt share its clips."""
    log_loss: float
    """Mean of -log of the probability of what was chosen, nats."""
    calibration_error: float
    """Mean distance of predicted probability and observed share over the bins."""
    bins: tuple[Bin, ...]
    comparisons: int

    @property
    def figures(self) -> dict[str, Any]:
        return asdict(self)


def predict(
    margin: Floats, first_wins: NDArray[np.bool_], prompt: NDArray[np.int32], *, bins: int = 8
) -> Prediction:
    """The figures of margins float64 [M] for choices bool [M] of prompts int32 [M].

    Raises ValueError without a comparison.
    """
    if not len(margin):
        raise ValueError("no comparison to measure with")
    hits = np.where(margin == 0, 0.5, (margin > 0) == first_wins)
    chosen = np.where(first_wins, margin, -margin)
    table = reliability(expit(margin), first_wins, bins=bins)
    error = sum(bin.count * abs(bin.predicted - bin.observed) for bin in table) / len(margin)
    return Prediction(
        accuracy=float(hits.mean()),
        standard_error=clustered_error(hits, prompt),
        log_loss=float(np.logaddexp(0, -chosen).mean()),
        calibration_error=float(error),
        bins=table,
        comparisons=len(margin),
    )


def clustered_error(values: Floats, group: NDArray[np.int32]) -> float:
    """Standard error of the mean of values [M] that are alike within a group, int32 [M].

    Of one group alone, the values count as independent.
    """
    numbers = np.unique(group, return_inverse=True)[1]
    if numbers.max() == 0:
        numbers = np.arange(len(values))
    groups = int(numbers.max()) + 1
    if groups == 1:
        return 0.0
    sums = np.bincount(numbers, values - values.mean())
    return float(np.sqrt(groups / (groups - 1) * (sums**2).sum()) / len(values))


def reliability(
    probability: Floats, first_wins: NDArray[np.bool_], *, bins: int
) -> tuple[Bin, ...]:
    """Comparisons in order of their predicted probability, cut into bins of equal size."""
    order = np.argsort(probability, kind="stable")
    return tuple(
        Bin(
            predicted=float(probability[part].mean()),
            observed=float(first_wins[part].mean()),
            count=len(part),
        )
        for part in np.array_split(order, min(bins, len(order)))
    )
