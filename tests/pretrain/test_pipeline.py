"""All stages of a world from one command, on a world of a few clips: killed, continued, repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import EXIT_FAULT, main
from musicrl.checkpoint import load_tensors
from musicrl.policies.preference import PreferenceModel
from musicrl.pretrain.record import Begun, Records
from musicrl.pretrain.world import WorldConfig, build_world
from musicrl.rewards.table import make_reward
from musicrl.types import Prompt
from musicrl.world import World

ROOT = Path(__file__).parent.parent.parent
DEADLINE_SECONDS = 300
NAMES = [
    "world",
    "prompts",
    "codec",
    "embedder",
    "judge",
    "calibration",
    "semantic",
    "policy",
    "policy-noisy",
    "quality",
    "quality-judge",
    "preference-data",
    "preference",
]
MODEL = {
    "coarse_vocab": 32,
    "num_steps": 25,
    "condition_levels": 4,
    "condition_vocab": 16,
    "width": 32,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 2,
    "depth_width": 16,
    "depth_layers": 1,
    "depth_heads": 2,
    "coarse_levels": 4,
    "codec_frames_per_step": 1,
}
TOWERS = {"width": 16, "num_blocks": 2, "text_width": 16, "text_layers": 1, "window_seconds": 1.0}
TRAINING = {"steps": 8, "batch_clips": 8, "checkpoint_every": 4}


GRADING = {
    "model": {"width": 8, "num_blocks": 1},
    "clips": 4,
    "coded_clips": 2,
    "prompts": 2,
    "measured": 2,
    "crop_seconds": [0.5, 1.5],
    **TRAINING,
}


def settings(soundfont: Path) -> dict[str, Any]:
    """Every stage in its smallest size."""
    conditions = {"condition_levels": 4, "condition_vocab": 16}
    return {
        "world": {
            "soundfont": str(soundfont),
            "train_clips": 24,
            "validation_clips": 8,
            "test_clips": 12,
            "clip_seconds": 2.0,
            "shard_clips": 8,
            "processes": 1,
        },
        "prompts": {"train_prompts": 20, "heldout_prompts": 8},
        "codec": {
            "codec": {"num_components": 32, "vocab_size": 32, "fft_size": 640},
            "pca_clips": 16,
            "clips_per_step": 4,
            "steps": 6,
        },
        "embedder": {"model": {**TOWERS, **conditions}, "codec_clips": 8, **TRAINING},
        "judge": {"model": {**TOWERS, "condition_levels": 0}, **TRAINING},
        "semantic": {"semantic": {"width": 16}, "clips": 16, "steps": 6, "vectors_per_step": 500},
        "policy": {"model": MODEL, **TRAINING, "checkpoint_every": 30},
        "policy_noisy": {"model": MODEL, **TRAINING, "steps": 4},
        "quality": GRADING,
        "quality_judge": GRADING,
        "preference_data": {
            "pairs": 300,
            "rater": {"weights": {"sounding": 0.0}, "taste": 0.2},
            "clips": {"prompts": 16, "clips_per_prompt": 2, "clip_seconds": 1.2},
        },
        "preference": {
            "selection": {"heldout": 0.2},
            "training": {"steps": 6, "batch_prompts": 2, "evaluate_every": 3},
        },
    }


def write_settings(path: Path, tree: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def made(out: Path) -> dict[str, int]:
    """When each file of the finished stages was changed."""
    records = [json.loads(path.read_text()) for path in (out / "stages").glob("*[!n].json")]
    return {path: (out / path).stat().st_mtime_ns for r in records for path in r["wrote"]}


def kill_in(stage: str, command: list[str], out: Path) -> None:
    """Run a command until a stage has written a checkpoint, and kill it as a power cut does."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        while not (out / "weights" / f".{stage}.resume.safetensors").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_SECONDS)


def test_every_stage_is_made_once_whatever_happens(
    soundfont: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "world", write_settings(tmp_path / "a.yaml", settings(soundfont))
    args = ["pretrain", str(file), "--out", str(out), "--policy.steps", "60"]
    kill_in("policy", [sys.executable, "-m", "cluster.cli", *args], out)
    before = made(out)
    assert {path.name for path in (out / "stages").iterdir()} == {
        *(f"{name}.json" for name in NAMES[:7]),
        "policy.begun.json",
    }
    _, stopped = load_tensors(out / "weights" / ".policy.resume.safetensors", kind="stage")
    assert stopped["step"] == 30

    assert main([*args, "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "stage 1 of 13, world: finished before, in " in printed
    assert "policy: was interrupted, goes on from its checkpoint; all that is left takes" in printed
    assert "stage 9 of 13, policy-noisy: begins; all that is left takes about " in printed
    after = made(out)
    assert {path: after[path] for path in before} == before
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["stages"]) == NAMES
    assert report["stages"]["policy"]["attempts"] == 2
    assert report["stages"]["codec"]["attempts"] == 1
    assert json.loads((out / "report.json").read_text()) == report
    check_report(report, out)

    assert main(args) == 0
    assert made(out) == after
    assert capsys.readouterr().out.count("finished before") == len(NAMES)
    check_world(out / "weights")


def check_report(report: Mapping[str, Any], out: Path) -> None:
    """The figures are those of the files, and the Markdown says the same."""
    told = (out / "report.md").read_text()
    for name, row in report["stages"].items():
        assert row["figures"], name
        assert row["bytes"] > 0
        assert f"| {name} | {row['minutes']:.2f} | {row['attempts']} |" in told
    codec = report["stages"]["codec"]
    assert codec["bytes"] == (out / "weights" / "codec.safetensors").stat().st_size
    _, stored = load_tensors(out / "weights" / "codec.safetensors", kind="codec")
    assert codec["figures"] == stored["facts"]
    assert (
        f"| codec | chroma_correlation/4 | {stored['facts']['chroma_correlation/4']:.4g} |" in told
    )


def check_world(weights: Path) -> None:
    """It plays, and all its rewards score it."""
    world = World.load(weights, Path("policy-noisy.safetensors"))
    _, facts = PreferenceModel.from_file(weights / "preference.safetensors")
    assert facts["raters"] == "simulated"
    assert world.clip_seconds == 2.0
    assert make_reward("quality", world).name == "quality"
    assert world.conditioner([Prompt(id="a", text="a slow tune").text]).shape == (1, 4)


def test_faults_are_one_sentence(
    soundfont: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args, sentence in (
        (["--preset", "tinny"], "command line: preset is 'tinny', expected one of tiny"),
        (["--policy.name", "a"], "command line: policy.name follows from out: leave it out"),
        (["--codec.world", "a"], "command line: codec.world follows from out: leave it out"),
        (["a.yaml", "b.yaml"], "musicrl pretrain takes one file, got a.yaml b.yaml"),
        (["--world.soundfont", "a.sf2"], "no soundfont at a.sf2: install Debian's"),
    ):
        assert main(["pretrain", *args, "--out", str(tmp_path)]) == EXIT_FAULT
        assert sentence in capsys.readouterr().err
    Records(tmp_path).begin("world", Begun(settings="", read={}))
    (tmp_path / "stages" / "world.begun.json").write_text("{")
    args = ["pretrain", "--world.soundfont", str(soundfont), "--out", str(tmp_path)]
    assert main(args) == EXIT_FAULT
    assert "world.begun.json is no record: delete it" in capsys.readouterr().err


def test_clips_of_another_soundfont_are_not_mixed(soundfont: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sf2"
    other.write_bytes(soundfont.read_bytes() + b"\0")
    config = WorldConfig(
        world=tmp_path / "world",
        soundfont=soundfont,
        train_clips=1,
        validation_clips=1,
        test_clips=1,
        processes=1,
    )
    build_world(config)
    with pytest.raises(ValueError, match="other settings, notes or soundfont"):
        build_world(replace(config, soundfont=other))
