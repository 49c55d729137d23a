"""Which of two models is preferred: wins, ties and losses from marks (paper sections 4.3, 5.2).

A rater marks one clip of each model, made for one prompt; the higher mark wins, equal marks are a
tie (the paper does not say how marks become wins: this project's choice). Marks of one prompt share
its clips and are not independent, so that intervals and tests take the prompt as the unit. Pure
functions of arrays: who marked, and what, is decided elsewhere.

Axes: M marked pairs of clips, P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from musicrl.evaluation.figures import Figure, figure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 10_000
"""Bootstrap samples of an interval."""
LEVEL = 0.95
EXACT = 50
"""Differences up to which the signed-rank test is exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """M pairs of marks: one clip of each of two models, marked by one rater for one prompt."""

    a: Floats
    """float64 [M]; NaN where the clip could not be marked. So is `b`."""
    b: Floats
    prompt: Ints
    """int64 [M]: number of the prompt."""

    def __post_init__(self) -> None:
        if not self.a.shape == self.b.shape == self.prompt.shape:
            raise ValueError(
                f"marks of {self.a.shape} and {self.b.shape} clips, {self.prompt.shape} prompts"
            )

    def known(self) -> Marks:
        """The pairs of which both clips were marked."""
        is_known = np.isfinite(self.a) & np.isfinite(self.b)
        return Marks(a=self.a[is_known], b=self.b[is_known], prompt=self.prompt[is_known])


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often model a was preferred to model b."""

    wins: int
    ties: int
    losses: int
    rate: float
    """wins / (wins + losses); NaN where all are ties."""
    low: float
    """Lower end of the 95 % interval of the rate; NaN where there is none. So is `high`."""
    high: float
    p_value: float
    """Two-sided, of the Wilcoxon signed-rank test; NaN where no prompt prefers either."""
    unmarked: int
    """Pairs left out because a clip could not be marked."""

    def to_json(self) -> dict[str, object]:
        """NaN becomes null."""
        ends = [_number(self.low), _number(self.high)]
        return {
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "win_rate": _number(self.rate),
            "ci95": None if None in ends else ends,
            "p_value": _number(self.p_value),
            "unmarked": self.unmarked,
        }

    def __str__(self) -> str:
        if not np.isfinite(self.rate):
            return "-"
        return f"{100 * self.rate:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def win_rate(marks: Marks, *, seed: int = 0) -> WinRate:
    """The win rate of a over b; `seed` is that of the bootstrap."""
    known = marks.known()
    outcome = np.sign(known.a - known.b)
    wins, losses = int((outcome > 0).sum()), int((outcome < 0).sum())
    low, high = interval(outcome, known.prompt, seed=seed)
    return WinRate(
        wins=wins,
        ties=len(outcome) - wins - losses,
        losses=losses,
        rate=wins / (wins + losses) if wins + losses else float("nan"),
        low=low,
        high=high,
        p_value=signed_rank(known),
        unmarked=len(marks.a) - len(outcome),
    )


def interval(outcome: Floats, prompt: Ints, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of wins / (wins + losses), of outcomes float64 [M] that are 1,
    0 or -1, over bootstrap samples of whole prompts.

    A sample of ties alone has no rate and is left out; NaN where no outcome is decided.
    """
    if not np.any(outcome):
        return float("nan"), float("nan")
    _, number = np.unique(prompt, return_inverse=True)
    wins, losses = (np.bincount(number, outcome == side) for side in (1, -1))
    P = len(wins)
    draws = np.random.default_rng(seed).integers(P, size=(RESAMPLES, P))
    won, lost = wins[draws].sum(1), losses[draws].sum(1)
    decided = won + lost > 0
    rates = won[decided] / (won + lost)[decided]
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def signed_rank(marks: Marks) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test (the paper's, section 4.3) on the mean
    difference of the marks of each prompt; prompts without a difference are left out, and where
    none is left the p-value is NaN.

    Exact for up to 50 differences of different sizes, else by the normal approximation.
    """
    difference = by_prompt(marks.a - marks.b, marks.prompt)
    difference = difference[difference != 0]
    if not len(difference):
        return float("nan")
    has_ties = len(np.unique(np.abs(difference))) < len(difference)
    is_exact = not has_ties and len(difference) <= EXACT
    return float(wilcoxon(difference, method="exact" if is_exact else "approx").pvalue)


def opinion(marks: Floats, prompt: Ints) -> Figure:
    """Mean opinion score of marks float64 [M], with its standard error over prompts."""
    known = np.isfinite(marks)
    if not known.any():
        return figure(np.empty(0))
    means = by_prompt(marks[known], prompt[known])
    spread = figure(means)
    return Figure(
        mean=float(marks[known].mean()),
        standard_error=spread.standard_error,
        count=int(known.sum()),
    )


def by_prompt(values: Floats, prompt: Ints) -> Floats:
    """Mean float64 [P] of values [M] over those of each prompt."""
    _, number = np.unique(prompt, return_inverse=True)
    means: Floats = np.bincount(number, values) / np.bincount(number)
    return means


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None
