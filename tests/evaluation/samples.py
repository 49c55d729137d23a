"""A codec that keeps all, and a melody to put through it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Samples:
    """A codec of two levels: the samples in hundredths, and what is left of them."""

    sample_rate, frame_size, frame_rate = 16_000, 1, 16_000.0
    num_codebooks, vocab_size = 2, 1 << 20
    device = torch.device("cpu")

    def to(self, device: torch.device) -> Samples:
        return self

    def encode(self, audio: Tensor) -> Tensor:
        coarse = (audio * 100).round()
        return torch.stack([coarse, ((audio * 100 - coarse) * 1e6).round()], 1).long()

    def decode(self, codes: Tensor) -> Tensor:
        parts = codes.float() / torch.tensor([100, 1e8])[: codes.shape[1], None]
        return parts.sum(1)


def melody(rate: int, seconds: float) -> NDArray[np.float32]:
    """Three held tones of six harmonics, float32 [N]."""
    time = np.arange(round(seconds * rate / 3)) / rate
    tones = [
        sum(np.sin(2 * np.pi * hz * n * time) / n for n in range(1, 7)) * 0.1
        for hz in (440.0, 493.88, 587.33)
    ]
    return np.concatenate(tones).astype(np.float32)
