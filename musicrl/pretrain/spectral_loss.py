"""The multi-scale spectral reconstruction loss of a codec (SoundStream section III.E).

    sum over s = 2^6 .. 2^11 of  |S_s(x) - S_s(x^)|_1 + sqrt(s / 2) |log S_s(x) - log S_s(x^)|_2

S_s: 64 mel bands of spectra with a window of s samples, a quarter of it apart. Norms are over the
bands; over frames this is a mean where the paper has a sum, so that the length of a crop does not
weigh (this project's choice).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from musicrl.embedders.frontend import mel_filters

SCALES = (64, 128, 256, 512, 1024, 2048)
NUM_BANDS = 64
FLOOR = 1e-5


class SpectralLoss(nn.Module):
    """Holds the filters of one sample rate."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for size in SCALES:
            filters = mel_filters(sample_rate, size, NUM_BANDS)
            self.register_buffer(f"filters{size}", filters, persistent=False)

    def forward(self, audio: Tensor, rebuilt: Tensor) -> Tensor:
        """Of audio [B, N] and what was made of it."""
        return torch.stack([self._at(size, audio, rebuilt) for size in SCALES]).sum()

    def _at(self, size: int, audio: Tensor, rebuilt: Tensor) -> Tensor:
        wanted, found = (self.mel(size, x) for x in (audio, rebuilt))
        difference = (wanted - found).abs().sum(1)
        logs = (wanted + FLOOR).log() - (found + FLOOR).log()
        distance = (logs.square().sum(1) + 1e-12).sqrt()
        return (difference + math.sqrt(size / 2) * distance).mean()

    def mel(self, size: int, audio: Tensor) -> Tensor:
        """Audio [B, N] to magnitudes [B, bands, frames]."""
        window = torch.hann_window(size, device=audio.device)
        spectra = torch.stft(audio, size, size // 4, window=window, return_complex=True)
        bands: Tensor = self.get_buffer(f"filters{size}") @ spectra.abs()
        return bands
