"""Fitting residual codebooks by k-means with exponential moving averages (SoundStream III)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from musicrl.codecs.rvq import ResidualQuantizer, nearest
from musicrl.pretrain.progress import track

DEAD_COUNT = 1.0
"""A code whose moving count falls below this is replaced by a vector of the batch."""


def fit_quantizer(
    quantizer: ResidualQuantizer,
    draw: Callable[[int], Tensor],
    *,
    steps: int,
    description: str,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> float:
    """Fit every level on `draw(step)` -> vectors [M, D]; M of several times V.

    The decay grows from 0.6 to 0.99 so that the first guesses are soon forgotten. Returns the
    share of energy that the last batches leave unexplained; `report` receives each step's.
    """
    generator = torch.Generator().manual_seed(seed)
    num_codebooks, vocab_size, width = quantizer.codebooks.shape
    counts = torch.ones(num_codebooks, vocab_size)
    sums = torch.zeros(num_codebooks, vocab_size, width)
    unexplained: list[float] = []
    for step in track(range(steps), description=description):
        residual = draw(step)
        energy = residual.square().mean()
        decay = min(0.99, 0.6 + 0.4 * step / max(steps // 2, 1))
        for level, codebook in enumerate(quantizer.codebooks):
            if step == 0:
                start = torch.randint(len(residual), (vocab_size,), generator=generator)
                codebook.copy_(residual[start])
                sums[level] = codebook
            code = nearest(residual, codebook)
            counts[level].mul_(decay).add_(
                torch.bincount(code, minlength=vocab_size), alpha=1 - decay
            )
            sums[level].mul_(decay).index_add_(0, code, residual, alpha=1 - decay)
            codebook.copy_(sums[level] / counts[level].clamp(min=1e-6)[:, None])
            _revive(codebook, counts[level], sums[level], residual, generator)
            residual = residual - codebook[code]
        unexplained.append(float(residual.square().mean() / energy))
        if report is not None:
            report(step, unexplained[-1])
    tail = unexplained[-20:]
    return sum(tail) / len(tail)


def _revive(
    codebook: Tensor, counts: Tensor, sums: Tensor, vectors: Tensor, generator: torch.Generator
) -> None:
    dead = (counts < DEAD_COUNT).nonzero()[:, 0]
    chosen = vectors[torch.randint(len(vectors), (len(dead),), generator=generator)]
    codebook[dead], counts[dead] = chosen, 2 * DEAD_COUNT
    sums[dead] = 2 * DEAD_COUNT * chosen
