"""The codec stage: principal components, then residual codebooks, of the world's spectra."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from musicrl.bounds import at_least
from musicrl.codecs.base import Codec
from musicrl.codecs.spectral import SpectralCodec, SpectralCodecConfig
from musicrl.evaluation.pitch import has_tracker
from musicrl.evaluation.reconstruction import codec_figures
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

    def __post_init__(self) -> None:
        at_least(1, coarse_levels=self.coarse_levels, pca_clips=self.pca_clips)
        at_least(1, clips_per_step=self.clips_per_step, steps=self.steps)


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


def measure_codec(
    codec: Codec, data: WorldData, coarse_levels: int, *, clips: int = 96
) -> dict[str, float]:
    """Figures (`codec_figures`) of clips decoded from their coarse and from all levels, as
    `name/levels`; those of pitch where a tracker is installed and hears any."""
    indices = np.arange(min(clips, len(data)))
    solo = np.array([data.attributes[i].texture == "solo" for i in indices], bool)
    levels = sorted({min(coarse_levels, codec.num_codebooks), codec.num_codebooks})
    audio = data.audio(indices).numpy()
    rows = codec_figures(codec, audio, solo, levels, pitch=has_tracker())
    return {
        f"{name.replace('-', '_')}/{count}": found.mean
        for count in levels
        for name, found in rows[f"{count} levels"].items()
        if found.count
    }
