"""A codec that keeps all, a melody to put through it, and a reward that no music is needed for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.rewards.table import RewardWorld
from musicrl.types import Clips, Prompt


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


class Level:
    """A reward that is easily bought: the root mean square of a clip."""

    name = "level"

    def __init__(self, world: RewardWorld) -> None: ...

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        level: NDArray[np.float32] = np.sqrt((clips.audio**2).mean(1)).astype(np.float32)
        return level


def melody(rate: int, seconds: float) -> NDArray[np.float32]:
    """Three held tones of six harmonics, float32 [N]."""
    time = np.arange(round(seconds * rate / 3)) / rate
    tones = [
        sum(np.sin(2 * np.pi * hz * n * time) / n for n in range(1, 7)) * 0.1
        for hz in (440.0, 493.88, 587.33)
    ]
    return np.concatenate(tones).astype(np.float32)
