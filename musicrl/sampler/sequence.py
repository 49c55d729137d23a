"""A sample on its way: what was asked, how far it is, and which blocks it holds.

It knows neither who else is decoded nor how.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class Branch:
    """One prompt that a sequence continues: its own, or with guidance also the null prompt."""

    conditions: tuple[int, ...]
    blocks: list[int] = field(default_factory=list)
    slot: int = -1
    """Of the prompt's context; -1 while the sequence waits."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One sample: tokens [S, K] of which the first `step` steps are drawn."""

    id: int
    seed: int
    branches: tuple[Branch, ...]
    """Of its prompt, then of the null prompt if there is guidance."""
    tokens: NDArray[np.int16]
    """int16 [S, K]."""
    logprobs: NDArray[np.float32]
    """float32 [S, K], nats."""
    kept: NDArray[np.uint8] | None
    """uint8 [S, K, ceil(V / 8)] with top-k: the tokens that were left to draw from."""
    step: int = 0

    @property
    def num_steps(self) -> int:
        return len(self.tokens)

    @property
    def is_finished(self) -> bool:
        return self.step == self.num_steps
