"""Discriminators of a codec's training (SoundStream section III.D): of spectra and of waveforms.

The paper has one of complex spectra (window 1024, hop 256) and three of waveforms, at the full rate,
a half and a quarter of it. Spectra with other windows beside it are this project's choice, after
EnCodec's multi-scale discriminator; so are the widths. Needed to train a codec, never to use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SPECTRAL_BLOCKS = 6
SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Which discriminators there are, and their sizes."""

    stft_windows: tuple[int, ...] = (2048, 1024, 512)
    """Samples, powers of 2; the hop is a quarter of each."""
    stft_width: int = 32
    """Channels of the first layer."""
    waveform_scales: tuple[int, ...] = (1, 2, 4)
    """Factors by which the waveform is downsampled, powers of 2."""
    waveform_width: int = 16

    def __post_init__(self) -> None:
        for name in ("stft_windows", "waveform_scales"):
            for value in getattr(self, name):
                if value < 1 or value & (value - 1):
                    raise ValueError(f"{name} must be powers of 2, got {value}")
        if not self.stft_windows and not self.waveform_scales:
            raise ValueError("stft_windows and waveform_scales name no discriminator")
        if min(self.stft_windows, default=8) < 8:
            raise ValueError(f"stft_windows must be 8 or more, got {min(self.stft_windows)}")
        if self.waveform_width % 4:
            raise ValueError(f"waveform_width must be a multiple of 4, got {self.waveform_width}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one discriminator says of a batch."""

    logits: Tensor
    """Above 0 where it takes the sound for real."""
    features: tuple[Tensor, ...]
    """Of its layers."""


class StftDiscriminator(nn.Module):
    """Complex spectra as two channels, through residual blocks that halve frequency each and time
    every other one, to one logit a remaining frame."""

    window: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        num_blocks = min(SPECTRAL_BLOCKS, int(math.log2(size // 2)))
        widths = [width * 2 ** min(i // 2, 2) for i in range(num_blocks + 1)]
        strides = [(1 + i % 2, 2) for i in range(num_blocks)]
        self.stem = nn.Conv2d(2, width, 7, padding=3)
        self.blocks = nn.ModuleList(
            SpectralBlock(a, b, stride)
            for (a, b), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 1, (1, size // 2 // 2**num_blocks))

    def forward(self, audio: Tensor) -> Verdict:
        """Audio [B, N]."""
        spectra = torch.stft(
            audio, self.size, self.size // 4, window=self.window, return_complex=True
        )
        planes = torch.view_as_real(spectra[:, :-1]).permute(0, 3, 2, 1)
        features = [self.stem(planes)]
        for block in self.blocks:
            features.append(block(features[-1]))
        logits = self.head(F.leaky_relu(features[-1], SLOPE))
        return Verdict(logits=logits[:, 0, :, 0], features=tuple(features))


class SpectralBlock(nn.Module):
    """[B, C, T, F] to [B, C', T / stride, F / 2]."""

    def __init__(self, width: int, out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        kernel = (3, 4) if stride[0] == 1 else (4, 4)
        self.second = nn.Conv2d(width, out, kernel, stride=stride, padding=1)
        self.shortcut = nn.Conv2d(width, out, 1)
        self.stride = stride

    def forward(self, hidden: Tensor) -> Tensor:
        change: Tensor = self.first(F.leaky_relu(hidden, SLOPE))
        change = self.second(F.leaky_relu(change, SLOPE))
        change = change + self.shortcut(F.avg_pool2d(hidden, self.stride, self.stride))
        return change


class WaveformDiscriminator(nn.Module):
    """A downsampled waveform through grouped strided convolutions (MelGAN's, as SoundStream's)."""

    def __init__(self, scale: int, width: int) -> None:
        super().__init__()
        self.scale = scale
        widths = [width * 4 ** min(i, 2) for i in range(4)]
        self.layers = nn.ModuleList(
            [
                nn.Conv1d(1, width, 15, padding=7),
                *(
                    nn.Conv1d(a, b, 41, stride=4, padding=20, groups=a // 4)
                    for a, b in pairwise(widths)
                ),
                nn.Conv1d(widths[-1], widths[-1], 5, padding=2),
            ]
        )
        self.head = nn.Conv1d(widths[-1], 1, 3, padding=1)

    def forward(self, audio: Tensor) -> Verdict:
        """Audio [B, N]."""
        hidden = audio[:, None]
        for _ in range(int(math.log2(self.scale))):
            hidden = F.avg_pool1d(hidden, 4, 2, padding=1)
        features = []
        for layer in self.layers:
            hidden = layer(hidden)
            features.append(hidden)
            hidden = F.leaky_relu(hidden, SLOPE)
        return Verdict(logits=self.head(hidden)[:, 0], features=tuple(features))


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [
                *(StftDiscriminator(size, config.stft_width) for size in config.stft_windows),
                *(
                    WaveformDiscriminator(scale, config.waveform_width)
                    for scale in config.waveform_scales
                ),
            ]
        )

    def forward(self, audio: Tensor) -> list[Verdict]:
        """Audio [B, N]."""
        return [part(audio) for part in self.parts]


def discriminator_loss(real: Iterable[Verdict], made: Iterable[Verdict]) -> Tensor:
    """Hinge: mean of max(0, 1 - D(x)) + max(0, 1 + D(x^)) (SoundStream section III.E)."""
    pairs = zip(real, made, strict=True)
    losses = [F.relu(1 - r.logits).mean() + F.relu(1 + m.logits).mean() for r, m in pairs]
    return torch.stack(losses).mean()


def adversarial_loss(made: Iterable[Verdict]) -> Tensor:
    """The generator's hinge: mean of max(0, 1 - D(x^))."""
    return torch.stack([F.relu(1 - verdict.logits).mean() for verdict in made]).mean()


def feature_loss(real: Iterable[Verdict], made: Iterable[Verdict]) -> Tensor:
    """Mean absolute difference of the layers' features, of all layers of all discriminators."""
    layers = [
        (a.detach() - b).abs().mean()
        for r, m in zip(real, made, strict=True)
        for a, b in zip(r.features, m.features, strict=True)
    ]
    return torch.stack(layers).mean()
