"""Fitting residual codebooks by k-means with exponential moving averages (SoundStream III)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from musicrl.codecs.ema import replace_dead, update_codebook
from musicrl.codecs.rvq import ResidualQuantizer, nearest
from musicrl.pretrain.progress import track

DEAD_COUNT = 1.0
"""A code whose moving count falls below this is replaced by a vector of the batch. SoundStream's is
2 (`pretrain.quantizing`); the shipped codebooks were fitted with this one, on a few vectors a code."""


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
            state = codebook, counts[level], sums[level]
            update_codebook(*state, residual, code, decay=decay)
            replace_dead(*state, residual, generator, threshold=DEAD_COUNT, fresh=2 * DEAD_COUNT)
            residual = residual - codebook[code]
        unexplained.append(float(residual.square().mean() / energy))
        if report is not None:
            report(step, unexplained[-1])
    tail = unexplained[-20:]
    return sum(tail) / len(tail)
