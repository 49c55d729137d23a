"""Sizes of models that learn something in seconds."""

from __future__ import annotations

from pathlib import Path

from musicrl.codecs.spectral import SpectralCodecConfig
from musicrl.embedders.mulan import MuLanConfig
from musicrl.policies.musiclm import MusicLMConfig
from musicrl.pretrain.embedder import EmbedderStageConfig

CODEC = SpectralCodecConfig(num_components=48, vocab_size=32)
EMBEDDER = MuLanConfig(
    width=24, num_blocks=2, text_width=16, text_layers=1, condition_levels=4, condition_vocab=16
)
POLICY = MusicLMConfig(
    semantic_vocab=256,
    coarse_vocab=32,
    coarse_levels=4,
    codec_frames_per_step=1,
    condition_levels=4,
    condition_vocab=16,
    width=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    depth_width=16,
    depth_layers=1,
    depth_heads=2,
)


def embedder_stage(
    world: Path, weights: Path, steps: int = 40, codec_levels: int = 0
) -> EmbedderStageConfig:
    return EmbedderStageConfig(
        codec_levels=codec_levels,
        world=world,
        weights=weights,
        model=EMBEDDER,
        steps=steps,
        batch_clips=24,
        checkpoint_every=20,
        learning_rate=3e-3,
    )
