"""Conformer blocks that look both ways (Gulati et al. 2020), with rotary positions (SoundStorm 4.1).

    half a feed-forward ─ attention ─ convolution ─ half a feed-forward ─ norm

They know neither tokens nor levels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.policies.blocks import Attention, attend_over, rotate


class FeedForward(nn.Module):
    """Pre-norm feed-forward."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., W]; the change."""
        change: Tensor = self.down(F.silu(self.up(self.norm(x))))
        return change


class Convolution(nn.Module):
    """Gated pointwise, depthwise over `kernel` frames, pointwise.

    A layer norm stands where the Conformer has a batch norm: what a clip becomes is then no matter
    of the clips beside it (this project's choice).
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, W]; the change."""
        gated = F.glu(self.gate(self.norm(x)), dim=-1)
        mixed = self.mix(gated.transpose(1, 2)).transpose(1, 2)
        change: Tensor = self.out(F.silu(self.inner_norm(mixed)))
        return change


class ConformerBlock(nn.Module):
    """x [B, T, W] to [B, T, W]."""

    def __init__(self, width: int, num_heads: int, ratio: int, kernel: int) -> None:
        super().__init__()
        self.before, self.after = FeedForward(width, ratio), FeedForward(width, ratio)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, num_heads)
        self.convolution = Convolution(width, kernel)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """With the rotations of its positions."""

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key = (rotate(each, rotation).to(value.dtype) for each in (query, key))
            return attend_over(query, key, value)

        x = x + self.before(x) / 2
        x = x + self.attention(self.attention_norm(x), attend)
        x = x + self.convolution(x)
        normed: Tensor = self.norm(x + self.after(x) / 2)
        return normed
