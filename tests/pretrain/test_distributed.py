"""Stages by two processes and by one: the same batches, losses and weights."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.cli import EXIT_FAULT, main
from musicrl.codecs.fine import FineSizes
from musicrl.codecs.soundstream import SoundStreamConfig
from musicrl.policies.musiclm import MusicLM
from musicrl.pretrain import DISTRIBUTED, STAGES
from musicrl.pretrain.discriminators import DiscriminatorConfig
from musicrl.pretrain.distributed import Crew
from musicrl.pretrain.fine import FineStageConfig
from musicrl.pretrain.policy import PolicyStageConfig
from musicrl.pretrain.quality import QualityStageConfig
from musicrl.pretrain.soundstream import LossWeights, SoundStreamStageConfig
from musicrl.ranks import Alone
from musicrl.rewards.mos import MosConfig
from tests.pretrain.small import POLICY, embedder_stage

ROOT = Path(__file__).parent.parent.parent
STEPS = 4
FILES = {"embedder": "embedder", "policy": "pair", "quality": "quality", "fine": "fine"}
FILES["soundstream"] = "soundstream"
"""Stage to the name of its file and of its log."""


def stages(world: Path, weights: Path) -> dict[str, Any]:
    """Short stages; batches of an odd number of clips, which two processes share unevenly."""
    short: dict[str, Any] = {"world": world, "weights": weights, "steps": STEPS}
    short |= {"batch_clips": 5, "checkpoint_every": 3}
    return {
        "embedder": replace(
            embedder_stage(world, weights, steps=STEPS), batch_clips=11, checkpoint_every=3
        ),
        "policy": PolicyStageConfig(model=POLICY, name="pair", **short),
        "quality": QualityStageConfig(
            model=MosConfig(width=12, num_blocks=1),
            clips=6,
            coded_clips=2,
            prompts=0,
            measured=1,
            crop_seconds=(1.0, 1.5),
            **{**short, "batch_clips": 24},
        ),
        "fine": FineStageConfig(
            model=FineSizes(width=16, num_layers=1, num_heads=2, iterations=2),
            measured=2,
            **short,
        ),
        "soundstream": SoundStreamStageConfig(
            codec=SoundStreamConfig(
                sample_rate=16_000,
                strides=(2, 4, 5, 8),
                width=4,
                embedding_size=8,
                num_codebooks=3,
                vocab_size=8,
            ),
            discriminators=DiscriminatorConfig(
                stft_windows=(256,), waveform_scales=(2,), stft_width=2, waveform_width=4
            ),
            loss=LossWeights(feature=10.0),
            coarse_levels=2,
            measured=2,
            crop_seconds=0.15,
            **short,
        ),
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def run_pair(jobs: Sequence[tuple[str, Any, int | None]], folder: Path) -> None:
    """Two processes run the jobs, each stopped at its optimizer step, if any."""
    path = folder / "jobs.pickle"
    path.write_bytes(pickle.dumps([(name, job, free_port(), last) for name, job, last in jobs]))
    command = [sys.executable, "-m", "tests.pretrain.crew_worker", str(path)]
    places = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=places, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def scalars(weights: Path, name: str) -> Mapping[str, list[float]]:
    """Of the training log, by name; of steps that were logged twice the later."""
    events = EventAccumulator(str(weights / "tensorboard" / name))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/")]
    assert names
    return {tag: [e.value for e in events.Scalars(tag)] for tag in names}


@pytest.fixture(scope="session")
def trained(
    tiny_world: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """Folders in which the stages were trained by one process, by two, and by two that were stopped
    and went on."""
    folders = {name: tmp_path_factory.mktemp(name) / "weights" for name in ("one", "two", "again")}
    for folder in folders.values():
        shutil.copytree(weights, folder)
        torch.manual_seed(4)
        MusicLM(POLICY).save(folder / "policy.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    order = sorted(FILES, key=lambda name: name == "embedder")  # all others read the embedder
    for name in order:
        STAGES[name][1](stages(tiny_world, folders["one"])[name])
    torch.set_num_threads(threads)
    for file in folders["one"].glob("tokens-*"):  # for those who go on; the pair makes its own
        shutil.copy(file, folders["again"])
    jobs: list[tuple[str, Any, int | None]] = [
        (name, stages(tiny_world, folders["two"])[name], None) for name in order
    ]
    again = stages(tiny_world, folders["again"])
    jobs += [("policy", again["policy"], STEPS), ("policy", again["policy"], None)]
    run_pair(jobs, folders["two"].parent)
    return folders


@pytest.mark.parametrize("name", sorted(FILES))
def test_two_processes_train_as_one(trained: Mapping[str, Path], name: str) -> None:
    one, two = (scalars(trained[key], FILES[name]) for key in ("one", "two"))
    assert one.keys() == two.keys()
    rounding = 5e-4 if name in ("policy", "fine") else 1e-5  # products in bfloat16, or float32
    for tag, losses in one.items():
        assert len(losses) == STEPS
        np.testing.assert_allclose(two[tag], losses, rtol=rounding, atol=rounding, err_msg=tag)
    assert any(max(losses) - min(losses) > 10 * rounding for losses in one.values())


def test_a_stopped_pair_resumes_to_the_same_weights(trained: Mapping[str, Path]) -> None:
    whole, resumed = (load_file(trained[key] / "pair.safetensors") for key in ("two", "again"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    losses = [scalars(trained[key], "pair")["train/nll"] for key in ("two", "again")]
    assert losses[0] == losses[1]
    assert not list(trained["again"].glob(".*.resume.safetensors"))


@pytest.mark.slow
def test_torchrun_starts_a_stage(tiny_world: Path, weights: Path, tmp_path: Path) -> None:
    """The figures are printed once, and the file is there."""
    folder = Path(shutil.copytree(weights, tmp_path / "weights"))
    flags = ["--world", str(tiny_world), "--weights", str(folder), "--steps", "2"]
    flags += ["--batch-clips", "4", "--model.width", "24", "--model.num-blocks", "1"]
    flags += ["--model.condition-levels", "0", "--kind", "judge"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "cluster.cli", "pretrain", "judge", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recall_at_10") == 1
    assert (folder / "judge.safetensors").stat().st_mtime > tiny_world.stat().st_mtime


def test_what_several_processes_cannot_build_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["pretrain"], ["pretrain", "world"]):
        assert main(words) == EXIT_FAULT
        said = capsys.readouterr().err
        assert said == f"musicrl: several processes build one stage, of {', '.join(DISTRIBUTED)}\n"
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main(["pretrain", "policy"]) == EXIT_FAULT
    assert "WORLD_SIZE must be a number, got 'two'" in capsys.readouterr().err


def test_shares_are_all_rows_in_order() -> None:
    crews = [Crew(rank, 3, torch.device("cpu"), Alone()) for rank in range(3)]
    parts = [crew.share(torch.arange(7)) for crew in crews]
    assert torch.cat(parts).tolist() == list(range(7))
    assert [len(part) for part in parts] == [3, 2, 2]
    with pytest.raises(ValueError, match="3 processes cannot share 2 rows of a batch"):
        crews[0].share(torch.arange(2))
