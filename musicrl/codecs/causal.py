"""Causal convolutions and the blocks that SoundStream is made of (SoundStream section III.A).

Every output sample depends on its own and earlier input samples alone. ELU, no normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

DILATIONS = (1, 3, 9)


class CausalConv(nn.Module):
    """Hidden [B, C, N] to [B, C', N / stride]."""

    def __init__(
        self, width: int, out: int, kernel: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, out, kernel, stride=stride, dilation=dilation)
        self.padding = (kernel - 1) * dilation + 1 - stride

    def forward(self, hidden: Tensor) -> Tensor:
        filtered: Tensor = self.conv(F.pad(hidden, (self.padding, 0)))
        return filtered


class CausalUpsampling(nn.Module):
    """Hidden [B, C, N] to [B, C', N x stride]: a transposed convolution without what it foretells."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, out, 2 * stride, stride=stride)
        self.stride = stride

    def forward(self, hidden: Tensor) -> Tensor:
        filtered: Tensor = self.conv(hidden)[:, :, : -self.stride]
        return filtered


class ResidualUnit(nn.Module):
    """A dilated convolution over seven samples and one over channels, added to their input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.ELU(),
            CausalConv(width, width, 7, dilation=dilation),
            nn.ELU(),
            CausalConv(width, width, 1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        change: Tensor = self.change(hidden)
        return hidden + change


def encoder_block(width: int, stride: int) -> nn.Sequential:
    """[B, C, N] to [B, 2 C, N / stride]."""
    units = (ResidualUnit(width, dilation) for dilation in DILATIONS)
    return nn.Sequential(*units, nn.ELU(), CausalConv(width, 2 * width, 2 * stride, stride=stride))


def decoder_block(width: int, stride: int) -> nn.Sequential:
    """[B, 2 C, N] to [B, C, N x stride]."""
    units = (ResidualUnit(width, dilation) for dilation in DILATIONS)
    return nn.Sequential(nn.ELU(), CausalUpsampling(2 * width, width, stride), *units)
