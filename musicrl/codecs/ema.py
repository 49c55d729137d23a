"""Codebooks as moving averages of what falls to their codes (SoundStream section III.C).

Pure functions on one level's codebook [V, D], its counts [V] and sums [V, D], all changed in place.
Which decay, and when a code is dead, is the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_COUNT = 1e-6


def update_codebook(
    codebook: Tensor, counts: Tensor, sums: Tensor, vectors: Tensor, code: Tensor, *, decay: float
) -> None:
    """Move every code towards the mean of the vectors [M, D] that have it in code int64 [M].

    counts = decay counts + (1 - decay) n,  sums = decay sums + (1 - decay) sum,
    codebook = sums / counts.
    """
    n = torch.bincount(code, minlength=len(codebook))
    counts.mul_(decay).add_(n, alpha=1 - decay)
    sums.mul_(decay).index_add_(0, code, vectors, alpha=1 - decay)
    codebook.copy_(sums / counts.clamp(min=SMALLEST_COUNT)[:, None])


def replace_dead(
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    vectors: Tensor,
    generator: torch.Generator,
    *,
    threshold: float,
    fresh: float,
) -> int:
    """Put random vectors of [M, D] in the place of codes whose count is below `threshold`, as if
    they had `fresh` vectors; how many."""
    dead = (counts < threshold).nonzero()[:, 0]
    drawn = torch.randint(len(vectors), (len(dead),), generator=generator).to(vectors.device)
    chosen = vectors[drawn]
    codebook[dead], counts[dead] = chosen, fresh
    sums[dead] = fresh * chosen
    return len(dead)
