"""Evaluation of policies and of audio in a small world of random weights."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from musicrl.audio import write_wav
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.evaluate import run_evaluation
from musicrl.evaluation.origin import policy_file
from musicrl.evaluation.rows import evaluate_rows, heldout
from musicrl.policies.musiclm import MusicLM
from musicrl.rewards.mix import RewardConfig
from musicrl.world import World


@pytest.fixture(scope="module")
def other_policy(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's policy with its weights moved."""
    policy = MusicLM.from_file(tiny_world / "policy.safetensors")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    path = tmp_path_factory.mktemp("policy") / "other.safetensors"
    policy.save(path)
    return path


def test_a_policy_is_paired_with_the_base(
    tiny_world: Path, other_policy: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        weights=tiny_world, policies=(other_policy,), prompts=6, json=tmp_path / "deep" / "e.json"
    )
    screen = io.StringIO()
    report = run_evaluation(config, Console(file=screen, width=250))
    saved = json.loads((tmp_path / "deep" / "e.json").read_text())
    assert saved == report
    base, other = saved["rows"]["base"], saved["rows"][str(other_policy)]
    assert base["prompts"] == 6
    assert {"reward", "mismatched", "judge/tagger", "judge/embedding"} <= base["figures"].keys()
    assert base["kl"]["total"] == {"mean": 0.0, "standard_error": 0.0, "count": 6}
    assert other["kl"]["total"]["mean"] > 0.01
    assert list(other["entropy"]) == list(World.load(tiny_world).layout.stream_names)
    change = saved["differences"][str(other_policy)]["reward"]["mean"]
    rows = zip(other["per_prompt"], base["per_prompt"], strict=True)
    assert change == pytest.approx(np.mean([b["reward"] - a["reward"] for b, a in rows]))
    assert "minus base, paired" in screen.getvalue()


def test_the_figures_do_not_depend_on_the_chunks(tiny_world: Path) -> None:
    small, large = (
        evaluate_rows(EvaluateConfig(weights=tiny_world, prompts=5, prompts_per_chunk=n)).results[
            "base"
        ]
        for n in (2, 5)
    )
    for name, column in large.columns.items():
        np.testing.assert_allclose(small.columns[name], column, atol=1e-4, err_msg=name)


def test_a_folder_of_audio_is_a_row(tiny_world: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(weights=tiny_world, prompts=2, audio=(tmp_path,))
    rng = np.random.default_rng(0)
    for prompt in heldout(config):
        noise = rng.uniform(-0.5, 0.5, 8_000).astype(np.float32)
        write_wav(tmp_path / f"{prompt.id}.wav", noise, 16_000)
    found = evaluate_rows(config).results[str(tmp_path)]
    assert found.figures["reward"].count == 2
    assert found.kl == {}
    next(tmp_path.glob("*.wav")).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"\.wav is not a readable audio file"):
        evaluate_rows(config)


def test_a_reward_that_is_bought_with_one_tone_is_reported(
    tiny_world: Path, tmp_path: Path
) -> None:
    level = "tests.evaluation.samples:Level"
    config = EvaluateConfig(
        weights=tiny_world,
        prompts=6,
        audio=(tmp_path,),
        reward=RewardConfig(weights={level: 1.0}),
        out=tmp_path / "report",
    )
    tone = 0.9 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    for prompt in heldout(config):
        write_wav(tmp_path / f"{prompt.id}.wav", tone.astype(np.float32), 16_000)
    screen = io.StringIO()
    report: Any = run_evaluation(config, Console(file=screen, width=250))
    found = report["kept"][str(tmp_path)]
    assert found["reward_rose_while_music_fell"]
    assert {"spread/tagger", "spread/judge", "longest-note"} <= set(found["worse"])
    assert found["music"]["spread/judge"]["after"] == pytest.approx(0, abs=1e-9)
    change = report["differences"][str(tmp_path)]["judge/sounding"]
    assert found["music"]["judge/sounding"]["change"] == change
    said = f"{tmp_path}: the reward rose while music FELL: "
    page = (tmp_path / "report" / "report.md").read_text()
    assert said in screen.getvalue()
    assert f"- {said}" in page
    assert "not measured (--pitch True tracks solos" in page


def test_where_a_policy_is_found(tmp_path: Path) -> None:
    run, world = tmp_path / "run", tmp_path / "world"
    for step in ("step_000002", "step_000010"):
        (run / "checkpoints" / step).mkdir(parents=True)
        (run / "checkpoints" / step / "policy.safetensors").touch()
    world.mkdir()
    (world / "policy-other.safetensors").touch()
    newest = run / "checkpoints" / "step_000010"
    for path in (run, newest, newest / "policy.safetensors"):
        assert policy_file(path, world) == newest / "policy.safetensors"
    other = Path("policy-other.safetensors")
    assert policy_file(other, world) == world / other
    with pytest.raises(FileNotFoundError, match="no policy at"):
        policy_file(tmp_path / "nowhere", world)


def test_another_policy_can_be_the_base(tiny_world: Path, other_policy: Path) -> None:
    config = EvaluateConfig(weights=tiny_world, prompts=4, policies=(other_policy,))
    plain = evaluate_rows(config).results
    swapped = evaluate_rows(replace(config, base=other_policy)).results
    row = plain[str(other_policy)]
    assert row.figures["reward"] == swapped["base"].figures["reward"]
    assert row.kl["total"].max() > 1e-3
    assert swapped[str(other_policy)].kl["total"].max() < 1e-6


def test_prompts_of_a_file_take_the_place_of_the_worlds(tiny_world: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a march\na waltz\na reel\n")
    found = heldout(EvaluateConfig(weights=tiny_world, prompt_file=file, prompts=2))
    assert [prompt.text for prompt in found] == ["a march", "a waltz"]
    free = heldout(EvaluateConfig(prompt_file=Path("freeform"), prompts=101))
    assert {prompt.source for prompt in free} == {"freeform"}
    with pytest.raises(ValueError, match=r"mine.txt holds only 3"):
        heldout(EvaluateConfig(weights=tiny_world, prompt_file=file, prompts=4))


def test_settings_that_cannot_be_met_are_refused(tiny_world: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts is 99, but .*prompts\.parquet holds only"):
        heldout(EvaluateConfig(weights=tiny_world, prompts=99))
    with pytest.raises(ValueError, match="prompts must be 2"):
        EvaluateConfig(prompts=1)
    with pytest.raises(ValueError, match="prompts_per_chunk must be 1"):
        EvaluateConfig(prompts_per_chunk=0)
    with pytest.raises(ValueError, match="seed must be 0"):
        EvaluateConfig(seed=-1)
