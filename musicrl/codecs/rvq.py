"""Residual vector quantisation: a vector to Q codes, each refining what the ones before left.

Used by the codec, by the joint embedding's conditioning tokens and (with one level) by the
semantic tokens. Fitting is elsewhere (`pretrain.kmeans`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualQuantizer(nn.Module):
    """Codebooks float32 [Q, V, D] (SoundStream's RVQ, section III; MusicLM section 3.1)."""

    codebooks: Tensor

    def __init__(self, num_codebooks: int, vocab_size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_codebooks, vocab_size, width))

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors [..., D] to codes int64 [..., Q], level by level (greedy)."""
        residual, codes = vectors, []
        for codebook in self.codebooks:
            code = nearest(residual, codebook)
            codes.append(code)
            residual = residual - codebook[code]
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [..., Q'] of the first Q' <= Q levels to vectors [..., D]."""
        return torch.stack(
            [self.codebooks[level][codes[..., level]] for level in range(codes.shape[-1])]
        ).sum(0)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index int64 [...] of the codebook row [V, D] nearest to each vector [..., D]."""
    return (2 * vectors @ codebook.T - codebook.square().sum(-1)).argmax(-1)
