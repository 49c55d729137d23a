"""The ear of the embedders: log-mel spectra of audio."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """Audio float32 [B, N] to log-mel [B, bands, N / hop], about unit scale."""

    filters: Tensor
    window: Tensor

    def __init__(self, *, sample_rate: int, fft_size: int, hop_size: int, num_bands: int) -> None:
        super().__init__()
        self.fft_size, self.hop_size = fft_size, hop_size
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        filters = mel_filters(sample_rate, fft_size, num_bands)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        spectra = torch.stft(
            audio, self.fft_size, self.hop_size, window=self.window, return_complex=True
        )
        mel = self.filters @ spectra.abs()[:, :, :-1]
        return (torch.log(mel + 1e-3) + 2) / 2


def mel_filters(sample_rate: int, fft_size: int, num_bands: int) -> Tensor:
    """Triangular filters float32 [bands, bins], HTK mel scale, 40 Hz to half the sample rate."""
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700))
    low = 2595 * torch.log10(torch.tensor(1 + 40 / 700))
    centres = 700 * (10 ** (torch.linspace(float(low), float(top), num_bands + 2) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    rising = (bins[None] - centres[:-2, None]) / (centres[1:-1] - centres[:-2])[:, None]
    falling = (centres[2:, None] - bins[None]) / (centres[2:] - centres[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters / filters.sum(1, keepdim=True).clamp(min=1e-6)
