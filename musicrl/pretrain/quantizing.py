"""Residual quantisation while its codebooks are learned: moving averages, dropout, straight-through.

SoundStream section III.C: k-means on the first batch, averages that decay by 0.99, codes replaced
whose average count falls below 2; and quantizer dropout: each clip uses its own first levels alone.
Knows nothing of what makes the vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from musicrl.codecs.ema import replace_dead, update_codebook
from musicrl.codecs.rvq import ResidualQuantizer, nearest
from musicrl.pretrain.distributed import ALONE, Crew

DECAY = 0.99
DEAD_COUNT = 2.0
"""Average count below which a code is replaced. It is of a batch: one of M vectors gives V codes
M / V each, so that M is to be several times 2 V."""
FRESH_COUNT = 2 * DEAD_COUNT
"""Count that a replaced code starts with, so that it is not replaced at once (this project's
choice)."""
LLOYD_STEPS = 10


class Quantised(NamedTuple):
    """A batch that went through the levels."""

    vectors: Tensor
    """[B, T, D], with the gradient of what was quantised."""
    commitment: Tensor
    """Mean square distance of what was quantised to its codes, which it draws near to them."""
    replaced: int
    """Codes that were dead."""


class MovingAverages(nn.Module):
    """Counts and sums of the codes of all levels, which make the codebooks."""

    counts: Tensor
    sums: Tensor
    is_started: Tensor

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        Q, V, D = quantizer.codebooks.shape
        self.register_buffer("counts", torch.zeros(Q, V))
        self.register_buffer("sums", torch.zeros(Q, V, D))
        self.register_buffer("is_started", torch.tensor(False))

    def quantise(
        self,
        quantizer: ResidualQuantizer,
        vectors: Tensor,
        levels: Tensor,
        generator: torch.Generator,
        crew: Crew = ALONE,
    ) -> Quantised:
        """Quantise vectors [B, T, D], those of clip b by the first levels[b] >= 1 of int64 [B], and
        move the codebooks, by the vectors of all processes: in each the same.

        Averages follow the residuals of all clips at all levels, of a clip's unused levels too: else
        the last of 12 would see a twelfth of them, and 2 would be another count at every level (this
        project's choice). Raises ValueError when the first batch has fewer vectors than codes.
        """
        quantised, (residual, own) = torch.zeros_like(vectors), crew.join(vectors)
        replaced = 0
        for level, codebook in enumerate(quantizer.codebooks):
            flat = residual.flatten(0, 1)
            if not self.is_started:
                self._start(codebook, level, flat, generator)
            code = nearest(flat, codebook)
            picked = codebook[code].view_as(residual)
            is_used = (levels > level)[:, None, None]
            quantised, residual = quantised + picked[own] * is_used, residual - picked
            state = codebook, self.counts[level], self.sums[level]
            update_codebook(*state, flat, code, decay=DECAY)
            replaced += replace_dead(
                *state, flat, generator, threshold=DEAD_COUNT, fresh=FRESH_COUNT
            )
        self.is_started.fill_(True)
        commitment = (vectors - quantised).square().mean()
        return Quantised(vectors + (quantised - vectors).detach(), commitment, replaced)

    def _start(
        self, codebook: Tensor, level: int, vectors: Tensor, generator: torch.Generator
    ) -> None:
        """A level's codebook by k-means of the first batch."""
        centres, counts = lloyd(vectors, len(codebook), generator)
        codebook.copy_(centres)
        self.counts[level], self.sums[level] = counts, counts[:, None] * centres


def lloyd(vectors: Tensor, vocab_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """K-means: centres [V, D] and counts [V] of vectors [M, D]; a centre without vectors stays.

    Raises ValueError when M < V.
    """
    M, D = vectors.shape
    if vocab_size > M:
        raise ValueError(f"a batch of {M} vectors cannot start a codebook of {vocab_size} codes")
    first = torch.randperm(M, generator=generator)[:vocab_size].to(vectors.device)
    centres = vectors[first].clone()
    for _ in range(LLOYD_STEPS):
        code = nearest(vectors, centres)
        sums = vectors.new_zeros(vocab_size, D).index_add_(0, code, vectors)
        counts = torch.bincount(code, minlength=vocab_size)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    counts = torch.bincount(nearest(vectors, centres), minlength=vocab_size)
    return centres, counts.to(vectors.dtype)


def draw_levels(clips: int, num_codebooks: int, generator: torch.Generator) -> Tensor:
    """Levels int64 [B] of each clip, even over 1 .. Q (quantizer dropout, SoundStream III.C)."""
    return torch.randint(1, num_codebooks + 1, (clips,), generator=generator)
