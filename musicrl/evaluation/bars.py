"""What is asked of a world that shall sound like music, beside what every row of an evaluation has.

    real clips | reconstructions | base | finetuned policies      columns
    solos that can be sung, the instrument that is heard, fast over slow,
    distance to real over that of reconstructions, captions that matter   lines

The thresholds are this project's own choice. It computes figures from others and hears nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrl.evaluation.clipset import SetFigures
from musicrl.evaluation.distance import Distance
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import EvaluationResult
from musicrl.evaluation.music import DIRECTION, MODERATE
from musicrl.prompts import attribute

STABLE, INSTRUMENT, TEMPO = "judge/stable-pitch", "judge/instrument-top1", "judge/onset-tempo"
DISTANCE = "frechet/tagger"
GAP = "caption-gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure and what is asked of it."""

    name: str
    asked: float
    is_most: bool = False
    """Whether `asked` is the most that is allowed; else the least."""

    def __str__(self) -> str:
        return f"{self.name} ({'at most' if self.is_most else 'at least'} {self.asked:g})"


BARS: Mapping[str, Bar] = {
    "stable-pitch": Bar(name="solo prompts with a stable pitch", asked=0.7),
    "instrument-top1": Bar(name="the caption's instrument is heard most", asked=0.6),
    "fast-over-slow": Bar(name="onset rate of 'fast' over 'slow' prompts", asked=1.5),
    "distance-ratio": Bar(
        name="Fréchet distance to real over that of reconstructions", asked=3.0, is_most=True
    ),
    GAP: Bar(name="another caption costs, nats a semantic token", asked=0.3),
}


def bar_figures(
    judged: Mapping[str, EvaluationResult],
    sets: Mapping[str, SetFigures],
    gaps: Mapping[str, Figure],
    reconstruction: str,
) -> dict[str, dict[str, Figure]]:
    """Figures by row and by bar, those that are known; `reconstruction` names the row that distances
    are divided by."""
    rows = {}
    for name, result in judged.items():
        found = {
            "stable-pitch": _column(result, STABLE),
            "instrument-top1": _column(result, INSTRUMENT),
            "fast-over-slow": fast_over_slow(result),
            "distance-ratio": _distance_ratio(sets, name, reconstruction),
            GAP: gaps.get(name),
        }
        rows[name] = {key: value for key, value in found.items() if value and value.count}
    return rows


def named(rows: Mapping[str, Mapping[str, Figure]]) -> dict[str, dict[str, Figure]]:
    """The same under the bars' names, in their order."""
    return {
        row: {str(bar): found[key] for key, bar in BARS.items() if key in found}
        for row, found in rows.items()
    }


def fast_over_slow(result: EvaluationResult) -> Figure | None:
    """Mean onset rate of clips of 'fast' prompts over that of 'slow' ones; None without both.

    Rates are those behind the judge `onset-tempo`, with its floor of one onset a clip.
    """
    if TEMPO not in result.columns:
        return None
    asked = [attribute(prompt, "tempo") for prompt in result.prompts]
    rates = {tempo: _rates(result.columns[TEMPO], asked, tempo) for tempo in DIRECTION}
    if any(len(found) < 2 for found in rates.values()):
        return None
    fast, slow = figure(rates["fast"]), figure(rates["slow"])
    return _ratio(
        (fast.mean, fast.standard_error), (slow.mean, slow.standard_error), fast.count + slow.count
    )


def _rates(scores: NDArray[np.float64], asked: list[str | None], tempo: str) -> NDArray[np.float64]:
    """Onsets a second of the clips whose prompt asks for a tempo and that have a score."""
    own = scores[np.array([value == tempo for value in asked], bool)]
    rates: NDArray[np.float64] = MODERATE * np.exp(DIRECTION[tempo] * own[np.isfinite(own)])
    return rates


def _column(result: EvaluationResult, name: str) -> Figure | None:
    return figure(result.columns[name]) if name in result.columns else None


def _distance_ratio(
    sets: Mapping[str, SetFigures], name: str, reconstruction: str
) -> Figure | None:
    pair = [
        sets[row].distances.get(DISTANCE) if row in sets else None for row in (name, reconstruction)
    ]
    above, below = pair
    if above is None or below is None:
        return None
    return _ratio(_known(above), _known(below), above.clips)


def _known(distance: Distance) -> tuple[float, float]:
    return distance.value, distance.standard_error


def _ratio(above: tuple[float, float], below: tuple[float, float], count: int) -> Figure:
    """Of two independent figures (mean, standard error), to first order."""
    ratio = above[0] / below[0]
    error = abs(ratio) * float(np.hypot(above[1] / above[0], below[1] / below[0]))
    return Figure(mean=ratio, standard_error=error, count=count)
