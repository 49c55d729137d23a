"""The embedded world's codec: compressed magnitude spectra, PCA, residual k-means, Griffin-Lim.

A linear front end keeps pitch at two levels where small trained encoders smear it, and fits in
minutes. It is this project's stand-in, behind the same protocol, for the paper's SoundStream.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from musicrl.bounds import at_least
from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.codecs.rvq import ResidualQuantizer


@dataclass(frozen=True, kw_only=True)
class SpectralCodecConfig:
    """Sizes of the codec."""

    sample_rate: int = 16_000
    """Hz."""
    fft_size: int = 1280
    """Samples."""
    hop_size: int = 320
    """Samples between spectra."""
    spectra_per_frame: int = 4
    """Spectra that one frame of codes describes. Four spectra in four levels keep more than twice
    two spectra in two levels, for the same number of codes: what lasts is written once."""
    exponent: float = 0.35
    """Magnitudes are raised to this power."""
    num_components: int = 256
    """Principal components kept."""
    num_codebooks: int = 6
    vocab_size: int = 512
    griffin_lim_steps: int = 2
    """Of phase retrieval: more cost time and leave less noise."""

    def __post_init__(self) -> None:
        at_least(1, sample_rate=self.sample_rate, fft_size=self.fft_size, hop_size=self.hop_size)
        at_least(1, spectra_per_frame=self.spectra_per_frame, num_components=self.num_components)
        at_least(1, num_codebooks=self.num_codebooks, vocab_size=self.vocab_size)
        at_least(0, griffin_lim_steps=self.griffin_lim_steps)


MOMENTUM = 0.99
"""Of the fast Griffin-Lim iteration (Perraudin et al. 2013)."""


class SpectralCodec(nn.Module):
    """12.5 Hz codes of 16 kHz audio."""

    mean: Tensor
    components: Tensor
    window: Tensor

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.num_codebooks, self.vocab_size = config.num_codebooks, config.vocab_size
        size = config.spectra_per_frame * (config.fft_size // 2)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.zeros(size, config.num_components))
        self.register_buffer("window", torch.hann_window(config.fft_size), persistent=False)
        self.quantizer = ResidualQuantizer(
            config.num_codebooks, config.vocab_size, config.num_components
        )

    @property
    def frame_size(self) -> int:
        """Samples of one frame of codes."""
        return self.config.hop_size * self.config.spectra_per_frame

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sample_rate / self.frame_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N], N a multiple of `frame_size`, to codes int64 [B, Q, T]."""
        vectors = (self.features(audio) - self.mean) @ self.components
        return self.quantizer.encode(vectors).transpose(1, 2)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, Q', T] of the first Q' <= Q levels to audio float32 [B, N]."""
        return self.invert(self.magnitudes(codes))

    def features(self, audio: Tensor) -> Tensor:
        """Audio [B, N] to compressed spectra [B, T, frame width].

        Raises ValueError when N is not a positive multiple of `frame_size`.
        """
        B, N = audio.shape
        if self.config.fft_size > N or N % self.frame_size:
            raise ValueError(f"audio of {N} samples is not a multiple of {self.frame_size}")
        spectra = self.stft(audio).abs()[:, : self.config.fft_size // 2, :-1]
        compressed = spectra.pow(self.config.exponent).transpose(1, 2)
        return compressed.reshape(B, N // self.frame_size, -1)

    def magnitudes(self, codes: Tensor) -> Tensor:
        """Codes [B, Q', T] to magnitude spectra [B, bins, spectra]."""
        B, _, T = codes.shape
        vectors = self.quantizer.decode(codes.transpose(1, 2)) @ self.components.T + self.mean
        frames = vectors.reshape(B, T * self.config.spectra_per_frame, self.config.fft_size // 2)
        spectra = frames.clamp(min=0).pow(1 / self.config.exponent).transpose(1, 2)
        spectra = torch.cat([spectra, spectra[:, :, -1:]], dim=2)
        return torch.cat([spectra, torch.zeros_like(spectra[:, :1])], dim=1)

    def invert(self, magnitudes: Tensor) -> Tensor:
        """Phase retrieval: magnitudes [B, bins, spectra] to audio [B, N] (fast Griffin-Lim).

        The first phases are those of Beauregard et al. (2015): each peak's advances at its
        interpolated frequency. Deterministic, and each clip independent of its batch.
        """
        estimate = torch.polar(magnitudes, initial_phases(magnitudes, self.config))
        previous = torch.zeros_like(estimate)
        for _ in range(self.config.griffin_lim_steps):
            rebuilt = self.stft(self._istft(estimate))
            leaped = rebuilt.lerp(previous, -MOMENTUM)
            previous = rebuilt
            parts = torch.view_as_real(leaped)
            estimate = leaped * (magnitudes * (parts.square().sum(-1) + 1e-16).rsqrt())
        return self._istft(estimate).clamp(-1, 1)

    def stft(self, audio: Tensor) -> Tensor:
        """Audio [B, N] to complex spectra [B, bins, spectra]."""
        size, hop = self.config.fft_size, self.config.hop_size
        return torch.stft(audio, size, hop, window=self.window, return_complex=True)

    def _istft(self, spectra: Tensor) -> Tensor:
        size, hop = self.config.fft_size, self.config.hop_size
        length = (spectra.shape[2] - 1) * hop
        return torch.istft(spectra, size, hop, window=self.window, length=length)

    def save(self, path: Path, **facts: float) -> None:
        """Write the codec, half precision, with `facts` (its measured quality) beside its sizes."""
        config = {"codec": asdict(self.config), "facts": facts}
        save_tensors(path, half(self.state_dict()), kind="codec", config=config)

    @classmethod
    def from_file(cls, path: Path) -> SpectralCodec:
        """The codec of a file. Raises FileNotFoundError or ValueError naming file and tensor."""
        tensors, config = load_tensors(path, kind="codec")
        codec = cls(SpectralCodecConfig(**config["codec"]))
        load_into(codec, tensors, origin=path)
        return codec.eval()


def initial_phases(magnitudes: Tensor, config: SpectralCodecConfig) -> Tensor:
    """Phases [B, bins, spectra] that let every spectral peak run on at its own frequency.

    Single-pass spectrogram inversion (Beauregard, Harish and Wyse 2015): a peak's frequency by
    parabolic interpolation, its phase advanced by one hop a spectrum; bins around it follow it.
    """
    frames = magnitudes.transpose(1, 2).contiguous()
    bins = frames.shape[2]
    padded = torch.nn.functional.pad(frames, (1, 1))
    left, right = padded[..., :-2], padded[..., 2:]
    curve = (left - 2 * frames + right).clamp(max=-1e-9)
    index = torch.arange(bins, device=frames.device)
    frequency = ((left - right) / curve * 0.5).clamp(-0.5, 0.5) + index
    is_peak = (frames > left) & (frames >= right)
    advance = frequency.gather(2, _nearest_peak(is_peak))
    advance *= 2 * torch.pi * config.hop_size / config.fft_size
    phases = advance.cumsum(dim=1) + torch.pi * (index % 2)
    return phases.transpose(1, 2)


def _nearest_peak(is_peak: Tensor) -> Tensor:
    """Index int64 of the peak nearest to each bin of the last axis (ties: the lower one; no peak:
    the bin itself)."""
    bins = is_peak.shape[-1]
    index = torch.arange(bins, dtype=torch.int16, device=is_peak.device)
    below = torch.where(is_peak, index, -bins).cummax(dim=-1).values
    mirrored = torch.where(is_peak.flip(-1), index, -bins).cummax(dim=-1).values
    above = bins - 1 - mirrored.flip(-1)
    chosen = torch.where(index - below <= above - index, below, above)
    return torch.where((chosen >= 0) & (chosen < bins), chosen, index).long()
