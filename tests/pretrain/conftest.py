"""One tiny world, rendered once for the tests of the stages."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from musicrl.pretrain.attributes import INSTRUMENTS
from musicrl.pretrain.codec import CodecStageConfig, fit_codec
from musicrl.pretrain.embedder import train_embedder
from musicrl.pretrain.prompts import PromptStageConfig, write_prompts
from musicrl.pretrain.semantic import SemanticStageConfig, fit_semantic
from musicrl.pretrain.world import WorldConfig, build_world
from tests.pretrain.small import CODEC, embedder_stage


def _soundfont_module() -> ModuleType:
    path = Path(__file__).with_name("soundfont.py")
    spec = importlib.util.spec_from_file_location("tests_soundfont", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def soundfont(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tinysoundfont")
    programs = {program for i in INSTRUMENTS.values() for program in (i.program, i.chords)}
    presets = [(0, program) for program in programs] + [(128, 0)]
    path = tmp_path_factory.mktemp("soundfont") / "saw.sf2"
    written: Path = _soundfont_module().write_soundfont(path, presets)
    return written


@pytest.fixture(scope="session")
def world_config(soundfont: Path, tmp_path_factory: pytest.TempPathFactory) -> WorldConfig:
    return WorldConfig(
        world=tmp_path_factory.mktemp("world"),
        soundfont=soundfont,
        train_clips=48,
        validation_clips=16,
        test_clips=24,
        shard_clips=16,
        processes=1,
    )


@pytest.fixture(scope="session")
def tiny_world(world_config: WorldConfig) -> Path:
    build_world(world_config)
    return world_config.world


@pytest.fixture(scope="session")
def weights(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages up to the semantic tokens, in order."""
    folder = tmp_path_factory.mktemp("weights")
    write_prompts(
        PromptStageConfig(world=tiny_world, weights=folder, train_prompts=40, heldout_prompts=20)
    )
    fit_codec(
        CodecStageConfig(
            world=tiny_world,
            weights=folder,
            codec=CODEC,
            pca_clips=32,
            clips_per_step=8,
            steps=15,
        )
    )
    train_embedder(embedder_stage(tiny_world, folder, codec_levels=4))
    fit_semantic(
        SemanticStageConfig(
            world=tiny_world,
            weights=folder,
            semantic=replace(SemanticStageConfig().semantic, width=24),
            clips=32,
            steps=10,
            vectors_per_step=2000,
        )
    )
    return folder
