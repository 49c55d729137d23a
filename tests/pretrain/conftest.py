"""One tiny world, rendered once for the tests of the stages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from musicrl.pretrain.attributes import INSTRUMENTS
from musicrl.pretrain.world import WorldConfig, build_world


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
        validation_clips=24,
        test_clips=24,
        shard_clips=16,
        processes=1,
    )


@pytest.fixture(scope="session")
def tiny_world(world_config: WorldConfig) -> Path:
    build_world(world_config)
    return world_config.world
