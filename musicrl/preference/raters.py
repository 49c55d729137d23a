"""Simulated raters: what makes them choose, and how noisy they must be to agree as people do.

A simulated rater's utility of a clip is shared by all (a weighted sum of scores) but for a taste of
its own (a direction in a space of embeddings); the choice between two is a coin that the difference
loads, as Bradley and Terry model it. Pure numpy: knows nothing of clips, files or rewards, and all
that it makes is called simulated.

Axes: C clips, R raters, M pairs, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
COLDEST, HOTTEST = 1e-4, 1e4
"""Bounds of the search for a temperature, in standard deviations of the utility."""


@dataclass(frozen=True, kw_only=True)
class SimulatedRaterConfig:
    """What simulated raters like. Every number is this project's choice, none is the paper's."""

    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "text": 0.5,
            "quality": 0.5,
            "pitch-variety": 0.5,
            "sounding": 0.5,
        }
    )
    """Weight of each score in the utility that all share, by the name of a reward or of a measure
    of the sound; each is first scaled to deviate by 1 among the clips of a prompt. A weight of 0
    is reported where the world has a model for it, not liked."""
    taste: float = 1.0
    """Weight of a rater's own taste, scaled likewise."""
    raters: int = 100
    agreement: float = 0.6
    """Share of pairs on which two raters agree; sets the noise. The paper's authors agreed with
    its users on 60 % (section 5)."""
    position_bias: float = 0.1
    """Log-odds by which the clip that comes first is preferred."""
    lapse: float = 0.02
    """Share of choices that are a fair coin's."""

    def __post_init__(self) -> None:
        if self.raters < 2:
            raise ValueError(f"raters must be 2 or more, got {self.raters}")
        if not 0.5 < self.agreement < 1:
            raise ValueError(f"agreement must be between 0.5 and 1, got {self.agreement}")
        if not 0 <= self.lapse < 1:
            raise ValueError(f"lapse must be 0 or more and below 1, got {self.lapse}")
        if not any(self.weights.values()) and not self.taste:
            raise ValueError("simulated raters need a weight or a taste to choose by")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of clips of one prompt each, as they are presented."""

    first: Ints
    """int64 [M], a clip's number; so is `second`."""
    second: Ints


class SimulatedRaters:
    """R raters of C clips, with the noise that makes them agree as configured on some pairs.

    Raises ValueError when no noise does.
    """

    def __init__(
        self, shared: Floats, tastes: Floats, config: SimulatedRaterConfig, pairs: Pairs
    ) -> None:
        self.shared = shared
        """float64 [C]: the utility that all share."""
        self.utilities = shared + config.taste * tastes
        """float64 [R, C]: each rater's own."""
        self._config = config
        self.temperature = self._calibrate(pairs)

    def first_wins(self, pairs: Pairs, rater: Ints, temperature: float | None = None) -> Floats:
        """Probability [M] that a rater prefers the first of each pair."""
        margin = self.utilities[rater, pairs.first] - self.utilities[rater, pairs.second]
        logit = margin / (temperature or self.temperature) + self._config.position_bias
        chance: Floats = expit(logit)
        return self._config.lapse / 2 + (1 - self._config.lapse) * chance

    def agreement(self, pairs: Pairs, temperature: float | None = None) -> float:
        """Expected share of pairs on which two raters, each hearing an order of its own, agree."""
        R, M = len(self.utilities), len(pairs.first)
        total, squares = np.zeros(M), np.zeros(M)
        for rater in range(R):
            wins = self._preference(pairs, rater, temperature)
            total += wins
            squares += wins**2
        both = total**2 - squares  # over ordered pairs of two raters
        neither = (R - total) ** 2 - (R - 2 * total + squares)
        return float((both + neither).mean() / (R * (R - 1)))

    def _preference(self, pairs: Pairs, rater: int, temperature: float | None) -> Floats:
        """Probability [M] that a rater prefers the clip in `first`, over both orders."""
        everywhere = np.full(len(pairs.first), rater)
        swapped = Pairs(first=pairs.second, second=pairs.first)
        there = self.first_wins(pairs, everywhere, temperature)
        back = self.first_wins(swapped, everywhere, temperature)
        return (there + 1 - back) / 2

    def _calibrate(self, pairs: Pairs) -> float:
        """The temperature of the wanted agreement, by bisection: noise only ever lowers it."""
        cold, hot, wanted = np.log(COLDEST), np.log(HOTTEST), self._config.agreement
        if (most := self.agreement(pairs, COLDEST)) < wanted:
            raise ValueError(
                f"agreement {wanted:g} is out of reach: without noise these raters agree on "
                f"{most:.3f} of the pairs; lower taste, position_bias or lapse"
            )
        for _ in range(40):
            middle = (cold + hot) / 2
            is_above = self.agreement(pairs, float(np.exp(middle))) > wanted
            cold, hot = (middle, hot) if is_above else (cold, middle)
        return float(np.exp((cold + hot) / 2))


def within_prompts(values: Floats, prompts: Ints) -> Floats:
    """Values [C] or [C, D] less the mean over the clips of the same prompt, int64 [C]."""
    count = np.bincount(prompts)
    sums = np.zeros((len(count), *values.shape[1:]))
    np.add.at(sums, prompts, values)
    means = sums / count.reshape(-1, *[1] * (values.ndim - 1))
    centred: Floats = values - means[prompts]
    return centred


def scaled(values: Floats, prompts: Ints, name: str) -> Floats:
    """Values [C] that deviate by 1 among the clips of a prompt.

    Raises ValueError naming them when they do not deviate at all.
    """
    centred = within_prompts(values, prompts)
    deviation = centred.std()
    if not deviation > 1e-9:
        raise ValueError(f"{name!r} is the same for all clips of a prompt: nothing to choose by")
    unit: Floats = centred / deviation
    return unit


def draw_tastes(embeddings: Floats, prompts: Ints, raters: int, rng: np.random.Generator) -> Floats:
    """Tastes [R, C]: each rater's clips along a random direction of the embeddings [C, D].

    The directions cancel over the raters, so that the shared utility is all that they share; they
    deviate by 1 among the clips of a prompt, over all raters.
    """
    directions = rng.normal(size=(raters, embeddings.shape[1]))
    directions -= directions.mean(0)
    tastes: Floats = directions @ within_prompts(embeddings, prompts).T
    unit: Floats = tastes / tastes.std()
    return unit


def draw_pairs(prompts: Ints, count: int, rng: np.random.Generator) -> Pairs:
    """Pairs of two different clips of a prompt, in random order; every prompt is as likely.

    `prompts` int64 [C] says each clip's prompt; raises ValueError when none has two clips.
    """
    order = np.argsort(prompts, kind="stable")
    sizes = np.bincount(prompts)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    (eligible,) = np.nonzero(sizes > 1)
    if not len(eligible):
        raise ValueError("no prompt has two clips to compare")
    chosen = rng.choice(eligible, count)
    first = rng.integers(sizes[chosen])
    second = (first + 1 + rng.integers(sizes[chosen] - 1)) % sizes[chosen]
    return Pairs(first=order[starts[chosen] + first], second=order[starts[chosen] + second])
