"""Held-out prompts whose attributes, as a whole, no clip has that models learned from: do policies put
together what they only ever met apart? It computes figures from others and hears nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from musicrl.evaluation.bars import INSTRUMENT, STABLE, TEMPO
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import REWARD, EvaluationResult
from musicrl.types import Prompt

Combination = frozenset[tuple[str, str]]
"""The attributes of a clip or a prompt, names and values."""
ADHERENCE = (REWARD, "judge/embedding", "judge/tagger", INSTRUMENT, TEMPO, STABLE)
"""What a prompt asks for, as far as it is heard."""


def is_unseen(prompts: Iterable[Prompt], trained: frozenset[Combination]) -> NDArray[np.bool_]:
    """Of each prompt with attributes, bool [P]; none where nothing is known of what was learned."""
    asked = [frozenset(prompt.attributes) for prompt in prompts]
    return np.array([bool(trained and each) and each not in trained for each in asked], bool)


def unseen_figures(result: EvaluationResult, trained: frozenset[Combination]) -> dict[str, Figure]:
    """Means over the unseen combinations, and what they are less than those over all others, as
    `NAME less that of others`; empty without any."""
    new = is_unseen(result.prompts, trained)
    if not new.any():
        return {}
    found: dict[str, Figure] = {}
    for name in (name for name in ADHERENCE if name in result.columns):
        own, others = (figure(result.columns[name][part]) for part in (new, ~new))
        if own.count:
            found |= {name: own, f"{name} less that of others": _difference(own, others)}
    return found


def _difference(own: Figure, others: Figure) -> Figure:
    """Of two independent means."""
    return Figure(
        mean=own.mean - others.mean,
        standard_error=float(np.hypot(own.standard_error, others.standard_error)),
        count=own.count,
    )
