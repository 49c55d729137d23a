"""The semantic stage: k-means of the embedder's middle layer, and what its tokens know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from musicrl.bounds import at_least
from musicrl.codecs.semantic import SemanticConfig, SemanticTokenizer
from musicrl.embedders.mulan import MuLan
from musicrl.pretrain.kmeans import fit_quantizer
from musicrl.pretrain.progress import track
from musicrl.pretrain.world import WorldData


@dataclass(frozen=True, kw_only=True)
class SemanticStageConfig:
    """Fitting of the semantic tokens."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder with embedder.safetensors; receives semantic.safetensors."""
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    clips: int = 1500
    steps: int = 120
    vectors_per_step: int = 16_384
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, clips=self.clips, steps=self.steps, vectors_per_step=self.vectors_per_step)


@torch.no_grad()
def fit_semantic(config: SemanticStageConfig) -> dict[str, float]:
    """Fit and write the tokenizer; returns the share of features' energy that tokens miss."""
    data = WorldData(config.world, "train")
    embedder = MuLan.from_file(config.weights / "embedder.safetensors")
    tokenizer = SemanticTokenizer(config.semantic)
    features = _features(embedder, data, config)
    tokenizer.mean.copy_(features.mean((0, 2)))
    tokenizer.scale.copy_(features.std((0, 2)).clamp(min=1e-4))
    vectors = tokenizer.normalise(features).flatten(0, 1)
    generator = torch.Generator().manual_seed(config.seed)

    def draw(step: int) -> Tensor:
        return vectors[torch.randint(len(vectors), (config.vectors_per_step,), generator=generator)]

    with SummaryWriter(str(config.weights / "tensorboard" / "semantic")) as writer:
        unexplained = fit_quantizer(
            tokenizer.quantizer,
            draw,
            steps=config.steps,
            description="semantic codebook",
            report=lambda step, share: writer.add_scalar("train/unexplained", share, step),
        )
    facts = {"unexplained": unexplained, **measure_semantic(tokenizer, vectors)}
    tokenizer.save(config.weights / "semantic.safetensors", **facts)
    return facts


def _features(embedder: MuLan, data: WorldData, config: SemanticStageConfig) -> Tensor:
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(len(data), size=min(config.clips, len(data)), replace=False)
    batches = np.array_split(chosen, -(-len(chosen) // 32))
    return torch.cat(
        [
            embedder.audio.features(embedder.front(data.audio(batch)))
            for batch in track(batches, description="semantic features")
        ]
    )


def measure_semantic(tokenizer: SemanticTokenizer, vectors: Tensor) -> dict[str, float]:
    """Codes in use and the entropy of their distribution, nats."""
    codes = tokenizer.quantizer.encode(vectors)[:, 0]
    counts = torch.bincount(codes, minlength=tokenizer.config.vocab_size).float()
    share = counts / counts.sum()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    return {"codes_used": float((counts > 0).sum()), "entropy": float(entropy)}
