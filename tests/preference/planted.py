"""Comparisons whose choices follow a rule that is known: more of one token wins."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from musicrl.layout import Layout
from musicrl.preference.dataset import write_comparisons
from musicrl.types import Choice, Comparison, Prompt, TokenClip

START = datetime(2024, 2, 6, tzinfo=UTC)


def planted(number: int, layout: Layout, *, steps: int = 4, raters: int = 2) -> Comparison:
    """Comparison `number`: of the clip with more tokens 0 in stream 0, which is chosen."""
    rng = np.random.default_rng(number)
    sizes = layout.vocab_sizes
    grids = [
        np.stack([rng.integers(0, size, steps) for size in sizes], 1).astype(np.int16) for _ in "ab"
    ]
    counts = rng.permutation(steps + 1)[:2]
    for grid, count in zip(grids, counts, strict=True):
        grid[:, 0] = 1 + rng.integers(0, sizes[0] - 1, steps)
        grid[rng.permutation(steps)[:count], 0] = 0
    return comparison(number, grids, "a" if counts[0] > counts[1] else "b", raters=raters)


def comparison(
    number: int, grids: Sequence[np.ndarray], choice: Choice, *, raters: int = 2
) -> Comparison:
    """Comparison `number`, of prompt `number % 40`, one a second."""
    clips = [
        TokenClip(id=f"clip-{number}-{side}", tokens=grid, policy="base@00")
        for side, grid in zip("ab", grids, strict=True)
    ]
    return Comparison(
        id=f"pair-{number}",
        prompt=Prompt(id=f"p{number % 40}", text=f"a tune, number {number % 40}"),
        clip_a=clips[0],
        clip_b=clips[1],
        choice=choice,
        heard_a=0.5,
        heard_b=1.0,
        rater=f"rater-{number % raters}",
        simulated=False,
        time=START + timedelta(seconds=number),
    )


def write_planted(path: Path, count: int, layout: Layout, *, steps: int = 4) -> Path:
    """A file of so many planted comparisons."""
    write_comparisons(path, (planted(i, layout, steps=steps) for i in range(count)))
    return path
