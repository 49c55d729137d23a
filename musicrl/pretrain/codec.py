"""The codec stage: principal components, then residual codebooks, of the world's spectra."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from musicrl.codecs.base import Codec
from musicrl.codecs.spectral import SpectralCodec, SpectralCodecConfig
from musicrl.pretrain.progress import track
from musicrl.pretrain.world import WorldData


@dataclass(frozen=True, kw_only=True)
class CodecStageConfig:
    """Fitting of the spectral codec."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder that receives codec.safetensors."""
    codec: SpectralCodecConfig = field(default_factory=SpectralCodecConfig)
    coarse_levels: int = 4
    """Levels that the policy will write: measured beside all of them."""
    pca_clips: int = 512
    clips_per_step: int = 48
    steps: int = 200
    seed: int = 0


def fit_codec(config: CodecStageConfig) -> dict[str, float]:
    """Fit and write the codec; returns its figures on validation clips."""
    from musicrl.pretrain.kmeans import fit_quantizer

    data, codec = WorldData(config.world, "train"), SpectralCodec(config.codec)
    _fit_components(codec, data, config)
    rng = np.random.default_rng(config.seed)
    reservoir: list[Tensor] = []

    def draw(step: int) -> Tensor:
        audio = data.audio(rng.integers(len(data), size=config.clips_per_step))
        vectors = ((codec.features(audio) - codec.mean) @ codec.components).flatten(0, 1)
        reservoir.append(vectors)
        del reservoir[:-3]
        return torch.cat(reservoir)

    with SummaryWriter(str(config.weights / "tensorboard" / "codec")) as writer:
        fit_quantizer(
            codec.quantizer,
            draw,
            steps=config.steps,
            description="codec codebooks",
            seed=config.seed,
            report=lambda step, share: writer.add_scalar("train/unexplained", share, step),
        )
    facts = measure_codec(codec, WorldData(config.world, "validation"), config.coarse_levels)
    codec.save(config.weights / "codec.safetensors", **facts)
    return facts


def _fit_components(codec: SpectralCodec, data: WorldData, config: CodecStageConfig) -> None:
    indices = np.random.default_rng(config.seed + 1).integers(len(data), size=config.pca_clips)
    width = codec.mean.numel()
    total, moment, count = torch.zeros(width), torch.zeros(width, width), 0
    for batch in track(np.array_split(indices, -(-len(indices) // 32)), description="codec PCA"):
        vectors = codec.features(data.audio(batch)).flatten(0, 1)
        total, moment = total + vectors.sum(0), moment + vectors.T @ vectors
        count += len(vectors)
    codec.mean.copy_(total / count)
    covariance = moment / count - torch.outer(codec.mean, codec.mean)
    values, vectors = torch.linalg.eigh(covariance)
    codec.components.copy_(vectors[:, values.argsort(descending=True)[: codec.components.shape[1]]])


@torch.no_grad()
def measure_codec(
    codec: Codec, data: WorldData, coarse_levels: int, *, clips: int = 96
) -> dict[str, float]:
    """Figures of clips decoded from their coarse and from all levels: mean absolute difference of
    log magnitudes, nats, and correlation of chroma."""
    facts: dict[str, float] = {}
    clips = min(clips, len(data))
    for levels in sorted({min(coarse_levels, codec.num_codebooks), codec.num_codebooks}):
        errors, correlations = [], []
        for batch in np.array_split(np.arange(clips), -(-clips // 16)):
            audio = data.audio(batch)
            rebuilt = codec.decode(codec.encode(audio)[:, :levels])
            errors.append(log_spectral_distance(audio, rebuilt, codec.sample_rate))
            correlations.append(chroma_correlation(audio, rebuilt, codec.sample_rate))
        facts[f"log_spectral_distance/{levels}"] = float(torch.cat(errors).mean())
        facts[f"chroma_correlation/{levels}"] = float(torch.cat(correlations).mean())
    return facts


def log_spectral_distance(a: Tensor, b: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of log magnitudes [B], nats, floor -60 dB below full scale; spectra
    of 80 ms, every 20 ms."""
    size, hop = round(0.08 * sample_rate), round(0.02 * sample_rate)
    window = torch.hann_window(size)
    spectra = (torch.stft(x, size, hop, window=window, return_complex=True).abs() for x in (a, b))
    first, second = (torch.log(magnitudes / size * 4 + 1e-3) for magnitudes in spectra)
    return (first - second).abs().mean((1, 2))


def chroma_correlation(a: Tensor, b: Tensor, sample_rate: int) -> Tensor:
    """Mean over sounding frames of the correlation of 12-bin chroma [B], 100 Hz to 2.1 kHz."""
    size, hop = 4096, 1024
    window = torch.hann_window(size)
    frequency = torch.arange(1, size // 2) * sample_rate / size
    pitch = 12 * torch.log2(frequency / 440) + 9
    distance = (pitch[None] - torch.arange(12)[:, None] + 6) % 12 - 6
    weights = torch.exp(-0.5 * (distance / 0.3) ** 2) * ((frequency > 100) & (frequency < 2100))
    chroma = [
        weights
        @ torch.stft(x, size, hop, window=window, return_complex=True).abs()[:, 1 : size // 2]
        for x in (a, b)
    ]
    sounding = chroma[0].sum(1) > 0.03 * chroma[0].sum(1).amax(1, keepdim=True)
    centred = [x - x.mean(1, keepdim=True) for x in chroma]
    scale = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    correlation = (centred[0] * centred[1]).sum(1) / scale.clamp(min=1e-6)
    mean: Tensor = (correlation * sounding).sum(1) / sounding.sum(1).clamp(min=1)
    return mean
