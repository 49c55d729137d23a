"""The joint-embedding protocol: text and audio in one space of unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class JointEmbedder(Protocol):
    """Two towers (paper section 3.3; MuLan): the cosine of their outputs is text adherence."""

    sample_rate: int
    """Hz."""
    window_seconds: float
    """Length of audio that the audio tower was made for, seconds."""

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, D], unit length."""
        ...

    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, window samples], on the CPU, to float32 [B, D], unit length."""
        ...

    def embed_clip(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N] of any length, on the CPU, to float32 [B, D]: the mean over its
        windows, at unit length."""
        ...

    def move(self, device: torch.device) -> None:
        """Bring both towers to `device`: what they give lies there."""
        ...
