"""Semantic tokens: k-means codes of the joint embedder's middle layer.

The stand-in of the embedded world for w2v-BERT tokens (MusicLM section 3.1): features normalised
per dimension before k-means, as AudioLM does. Needed to tokenise audio, never to decode.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from musicrl.checkpoint import load_into, load_tensors, save_tensors
from musicrl.codecs.rvq import ResidualQuantizer
from musicrl.embedders.mulan import MuLan


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """Sizes of the semantic vocabulary."""

    vocab_size: int = 256
    width: int = 160
    """Features of the embedder's middle layer."""


class SemanticTokenizer(nn.Module):
    """Audio to one code every four frames of the embedder's front end (12.5 Hz)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("scale", torch.ones(config.width))
        self.quantizer = ResidualQuantizer(1, config.vocab_size, config.width)

    def normalise(self, features: Tensor) -> Tensor:
        """Features [B, width, S] to [B, S, width] of zero mean and unit variance."""
        return (features.transpose(1, 2) - self.mean) / self.scale

    @torch.no_grad()
    def encode(self, audio: Tensor, embedder: MuLan) -> Tensor:
        """Audio float32 [B, N] to semantic tokens int64 [B, S]."""
        features = embedder.audio.features(embedder.front(audio))
        return self.quantizer.encode(self.normalise(features))[..., 0]

    def save(self, path: Path, **facts: float) -> None:
        """Write the tokenizer with `facts` (measured) beside its sizes."""
        config = {"semantic": asdict(self.config), "facts": facts}
        save_tensors(path, self.state_dict(), kind="semantic", config=config)

    @classmethod
    def from_file(cls, path: Path) -> SemanticTokenizer:
        """The tokenizer of a file. Raises FileNotFoundError or ValueError naming the file."""
        tensors, config = load_tensors(path, kind="semantic")
        tokenizer = cls(SemanticConfig(**config["semantic"]))
        load_into(tokenizer, tensors, origin=path)
        return tokenizer.eval()
