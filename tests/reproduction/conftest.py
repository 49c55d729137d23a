"""A world of random weights with all three rewards, and a reproduction of it in seconds."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from musicrl.policies.musiclm import MusicLM
from musicrl.policies.preference import PreferenceModel
from musicrl.reproduction.config import ReproduceConfig
from musicrl.reproduction.publish import reproduce
from musicrl.reproduction.reproduce import Train
from musicrl.rewards.mos import MosConfig, MosPredictor
from musicrl.settings import build, merge

Small = Callable[..., ReproduceConfig]
Reproduce = Callable[[ReproduceConfig, Train], dict[str, Any]]


@pytest.fixture(scope="session")
def loop_world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with a quality and a preference model, all of its prompts for solos."""
    folder = tmp_path_factory.mktemp("loop") / "world"
    shutil.copytree(tiny_world, folder)
    prompts = pq.read_table(folder / "prompts.parquet")
    solo = pa.array(["solo"] * len(prompts))
    pq.write_table(prompts.append_column("texture", solo), folder / "prompts.parquet")
    torch.manual_seed(11)
    for name in ("quality", "quality-judge"):
        MosPredictor(MosConfig(width=8, num_blocks=1)).save(folder / f"{name}.safetensors")
    policy = MusicLM.from_file(folder / "policy.safetensors")
    model = PreferenceModel.from_policy(policy)
    torch.nn.init.normal_(model.head.weight)
    model.save(folder / "preference.safetensors", {"window_steps": 5, "raters": "simulated"})
    return folder


@pytest.fixture(scope="session")
def small(loop_world: Path) -> Small:
    """Settings of a reproduction in the small world: `small(out, models=["R"])`."""

    def make(out: Path, **settings: Any) -> ReproduceConfig:
        short = {
            "out": str(out),
            "weights": str(loop_world),
            "prompts": 4,
            "audio_prompts": 2,
            "solo": True,
            # Random weights play hardly a note: only adherence tells the clips apart.
            "panel": {"rater": {"weights": {"text": 1.0}, "taste": 0.3, "raters": 20}},
            "scale": {
                "updates": 5,
                "shares": {"U": 0.6, "RU": 0.4},
                "prompts_per_step": 2,
                "samples_per_prompt": 2,
                "clip_seconds": 0.4,
                "checkpoint_every": 2,
            },
        }
        return build(ReproduceConfig, merge(short, settings), origin="test")

    return make


@pytest.fixture(scope="session")
def quietly() -> Reproduce:
    """`reproduce` on a console that nobody sees."""
    return lambda config, train: reproduce(config, train, Console(file=io.StringIO(), width=200))
