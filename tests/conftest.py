"""What every test runs under: one thread a process, so that two cores are not oversubscribed, and a
Ray that listens on this machine only and sends no usage statistics. Set before torch and Ray load.

What tests share: a world small enough to train in a second, and one Ray cluster a session.
"""

from __future__ import annotations

import logging
import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from musicrl.codecs.spectral import SpectralCodec, SpectralCodecConfig
from musicrl.config import TrainConfig
from musicrl.embedders.mulan import MuLan, MuLanConfig
from musicrl.evaluation.judges import CALIBRATION, write_calibration
from musicrl.evaluation.musicnn import TAGS
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.musiclm import MusicLM
from musicrl.settings import build, merge

Model = TypeVar("Model", bound=torch.nn.Module)
Configure = Callable[..., TrainConfig]
INSTRUMENTS = ("piano", "flute", "cello", "harp", "organ", "guitar")
TEMPI = ("slow", "fast")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of the C kernels need what builds them; all else runs without."""
    if item.get_closest_marker("compiler") and shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler")


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a world: real classes of small sizes, with random weights."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(7)
    policy = MusicLM(
        MusicLMConfig(
            semantic_vocab=8,
            coarse_vocab=12,
            coarse_levels=4,
            codec_frames_per_step=1,
            num_steps=5,
            condition_levels=2,
            condition_vocab=6,
            width=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            depth_width=8,
            depth_layers=1,
            depth_heads=2,
        )
    )
    for name in ("policy", "policy-noisy"):  # the tiny preset starts from the second
        policy.save(folder / f"{name}.safetensors")
    _noisy(
        SpectralCodec(SpectralCodecConfig(num_components=6, num_codebooks=4, vocab_size=12))
    ).save(folder / "codec.safetensors")
    for kind in ("embedder", "judge"):
        _noisy(MuLan(_embedder())).save(folder / f"{kind}.safetensors", kind=kind)
    calibration = np.full(len(TAGS), -3.0), np.full(len(TAGS), 1.5)
    write_calibration(folder / CALIBRATION, *calibration, clips=1)
    pyarrow.parquet.write_table(pyarrow.table(_prompts()), folder / "prompts.parquet")
    return folder


def _embedder() -> MuLanConfig:
    return MuLanConfig(
        window_seconds=0.1,
        width=8,
        num_blocks=1,
        text_width=8,
        text_layers=1,
        num_buckets=64,
        embedding_size=6,
        condition_levels=2,
        condition_vocab=6,
    )


def _noisy(model: Model) -> Model:
    """Buffers that pretraining would fill: random, so that codes sound and texts differ."""
    for _, buffer in model.named_buffers():
        if buffer.is_floating_point() and not buffer.any():
            buffer.normal_(std=0.2)
    return model


def _prompts() -> dict[str, list[str]]:
    pairs = [(instrument, tempo) for instrument in INSTRUMENTS for tempo in TEMPI]
    rows = [(i, t, split) for split in ("train", "heldout") for i, t in pairs]
    return {
        "id": [f"{split}-{i}-{t}" for i, t, split in rows],
        "text": [f"a {t} tune on the {i}" for i, t, _ in rows],
        "split": [split for _, _, split in rows],
        "instrument": [i for i, _, _ in rows],
        "tempo": [t for _, t, _ in rows],
    }


@pytest.fixture(scope="session")
def musicgen_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random MusicGen and random CLAPs."""
    from tests.small_musicgen import write_world

    folder = tmp_path_factory.mktemp("musicgen-world")
    write_world(folder)
    return folder


@pytest.fixture
def configure(tiny_world: Path, tmp_path: Path) -> Configure:
    """Configurations of short runs in the tiny world: `configure(iterations=2, cluster={...})`."""

    def make(**settings: Any) -> TrainConfig:
        short = {
            "out": str(tmp_path / "run"),
            "iterations": 3,
            "model": {"weights": str(tiny_world)},
            "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2, "prompts_per_chunk": 2},
            "update": {"learning_rate": 0.01},
            "cluster": {"learner_threads": 1, "object_store_mb": 100, "task_timeout_seconds": 60.0},
            "evaluation": {"prompts": 6, "audio_prompts": 2},
        }
        return build(TrainConfig, merge(short, settings), origin="test")

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests that need one; runs find it and leave it as it is."""
    import ray

    ray.init(
        address="local",
        num_cpus=16,
        include_dashboard=False,
        object_store_memory=200 * 10**6,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
