"""The codec protocol: audio to discrete codes and back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """A residual-vector-quantised audio codec."""

    sample_rate: int
    """Hz."""
    frame_rate: float
    """Frames per second of the codes."""
    num_codebooks: int
    vocab_size: int

    def encode(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N] to codes int64 [B, Q, T]."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, Q', T] of the first Q' <= Q levels to audio float32 [B, N]."""
        ...
