"""Clips to serve that no model had to make, and a clock that tests turn."""

from __future__ import annotations

import numpy as np

from musicrl.preference.clip import PlayableClip
from musicrl.types import Prompt, TokenClip


class Clock:
    """Seconds since 1970, by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def playable(prompt: int, index: int, *, seconds: float = 2.0) -> PlayableClip:
    """Clip `index` of prompt number `prompt`, with tokens of its own."""
    tokens = np.arange(15, dtype=np.int16).reshape(5, 3) + 100 * prompt + index - 7
    return PlayableClip(
        prompt=Prompt(id=f"p{prompt}", text=f"tune number {prompt}", source="test"),
        clip=TokenClip(id=f"clip-{prompt}-{index}", tokens=tokens, policy=f"policy-{index}@0f"),
        seed=2**64 - 1 - index,
        wav=f"clip-{prompt}-{index}.wav",
        seconds=seconds,
    )
