"""Preferences in a MusicGen world: simulated choices, a model of them, and a run that it rewards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.cli import main
from musicrl.config import TrainConfig
from musicrl.musicgen_world import MusicGenWorld
from musicrl.policies.musiclm import MusicLM
from musicrl.policies.preference import PreferenceModel
from musicrl.policies.preference_trunk import TRUNKS
from musicrl.preference.dataset import read_comparisons
from musicrl.preference.fit import FitConfig, fit
from musicrl.preference.pairs import SelectionConfig
from musicrl.preference.training import TrainingConfig
from musicrl.rewards.preference import Preference, load_preference
from musicrl.settings import build
from musicrl.solo import solo
from musicrl.types import Clips, Prompt
from tests.policies.test_value import CONFIG
from tests.preference.planted import write_planted

TEXTS = ("slow piano", "fast flute")


@pytest.fixture(scope="module")
def world(musicgen_world: Path) -> MusicGenWorld:
    return MusicGenWorld.load(musicgen_world)


def random_model(world: MusicGenWorld) -> PreferenceModel:
    torch.manual_seed(3)
    model = PreferenceModel.from_policy(world.policy)
    nn.init.normal_(model.head.weight)
    return model.eval().requires_grad_(False)


def grids(world: MusicGenWorld, frames: int, count: int = 2) -> Tensor:
    """Valid grids int64 [count, S, K] of so many frames."""
    codes = np.random.default_rng(0).integers(0, 16, (count, 2, frames))
    return torch.from_numpy(world.policy.layout.interleave(codes).astype(np.int64))


def test_starts_at_zero_from_the_layers_of_the_checkpoint(world: MusicGenWorld) -> None:
    model = PreferenceModel.from_policy(world.policy)
    conditions = world.conditioner(TEXTS)
    assert torch.equal(model(grids(world, 6), conditions), torch.zeros(2))
    own, theirs = model.trunk.state_dict(), world.policy.state_dict()
    assert theirs.keys() - own.keys() == {"head"}
    for name, tensor in own.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.data_ptr() != theirs[name].data_ptr(), name
    with pytest.raises(ValueError, match="layers must be 1 to 1, the policy's, got 2"):
        PreferenceModel.from_policy(world.policy, layers=2)


def test_the_state_after_the_last_step_is_the_policys_before_another(world: MusicGenWorld) -> None:
    model, tokens = random_model(world), grids(world, 6)
    conditions = world.conditioner(TEXTS)
    longer = torch.cat([tokens, tokens[:, :1]], 1)
    with torch.inference_mode():
        states = world.policy.hidden(longer, conditions)[:, 1:]
        expected = model.head(states.mean(1))[:, 0]
        torch.testing.assert_close(model(tokens, conditions), expected)


def test_a_score_sees_every_token_and_the_caption(world: MusicGenWorld) -> None:
    model, tokens = random_model(world), grids(world, 4)
    conditions = world.conditioner(TEXTS)
    score = model(tokens, conditions)
    for s, k in np.argwhere(tokens[0].numpy() != world.policy.layout.special).tolist():
        changed = tokens.clone()
        changed[0, s, k] = (tokens[0, s, k] + 1) % 16
        assert (model(changed, conditions) - score)[0].abs() > 1e-6, f"cell {s}, {k} is not seen"
    assert not torch.allclose(model(tokens, conditions.flip(0)), score)
    assert not torch.allclose(model(tokens, torch.full_like(conditions, -1)), score)


def test_windows_are_clips_of_their_own(world: MusicGenWorld) -> None:
    """Of six frames and windows of four: frames 0 to 3 and 2 to 5, each delayed anew."""
    model, layout = random_model(world), world.policy.layout
    codes = np.random.default_rng(1).integers(0, 16, (2, 2, 6))
    clips = Clips(
        audio=np.zeros((2, 1), np.float32), sample_rate=1, tokens=layout.interleave(codes)
    )
    prompts = [Prompt(id=text, text=text) for text in TEXTS]
    found = Preference(model, world, window=5)(prompts, clips)
    parts = [layout.interleave(codes[:, :, a : a + 4]).astype(np.int64) for a in (0, 2)]
    ends = [model(torch.from_numpy(part), world.conditioner(TEXTS)) for part in parts]
    np.testing.assert_allclose(found, sum(ends) / 2, atol=1e-5)


def test_a_file_reads_text_by_the_encoder_of_its_world(
    world: MusicGenWorld, tiny_world: Path, tmp_path: Path
) -> None:
    path, model = tmp_path / "preference.safetensors", random_model(world)
    model.save(path, {"window_steps": 21})
    again, facts = PreferenceModel.from_file(path, world.policy)
    assert facts == {"window_steps": 21}
    batch = grids(world, 6), world.conditioner(TEXTS)
    torch.testing.assert_close(again(*batch), model(*batch), atol=2e-2, rtol=0)
    tiny = MusicLM.from_file(tiny_world / "policy.safetensors")
    with pytest.raises(
        ValueError, match="of the family 'delayed', the world's policy of 'musiclm'"
    ):
        PreferenceModel.from_file(path, tiny)
    PreferenceModel.from_policy(tiny).save(path, {"window_steps": 5})
    with pytest.raises(
        ValueError, match="of the family 'musiclm', the world's policy of 'delayed'"
    ):
        load_preference(world, path)


def test_every_family_of_trunks_makes_a_fresh_one(world: MusicGenWorld) -> None:
    torch.manual_seed(0)
    policies = {"musiclm": MusicLM(CONFIG), "delayed": world.policy}
    assert policies.keys() == TRUNKS.keys()
    for policy in policies.values():
        model = PreferenceModel.from_policy(policy)
        torch.manual_seed(1)
        fresh, same = model.fresh().state_dict(), model.state_dict()
        assert fresh.keys() == same.keys()
        moved = [name for name in fresh if not torch.equal(fresh[name], same[name])]
        assert "trunk.token.weight" in moved
        assert any(name.startswith("trunk.text") or "condition" in name for name in moved)


def test_a_planted_rule_is_learned(
    musicgen_world: Path, world: MusicGenWorld, tmp_path: Path
) -> None:
    file = write_planted(tmp_path / "planted.parquet", 400, world.layout)
    config = FitConfig(
        files=(file,),
        out=tmp_path / "out",
        weights=musicgen_world,
        selection=SelectionConfig(heldout=0.2),
        training=TrainingConfig(steps=90, learning_rate=1e-2, evaluate_every=30),
    )
    report = fit(config)
    assert report["accuracy"] > 0.9
    assert report["origin"].startswith("base@")
    assert report["licence"] == "cc-by-nc-4.0"


def test_simulated_choices_become_a_reward_of_a_run(musicgen_world: Path, tmp_path: Path) -> None:
    choices, out = tmp_path / "simulated.parquet", tmp_path / "reward"
    flags = f"--out {choices} --clips.weights {musicgen_world} --clips.prompts 4"
    flags += " --clips.clips-per-prompt 12 --pairs 600 --rater.agreement 0.8 --rater.taste 0.1"
    flags += " --rater.weights.quality 0 --rater.weights.pitch-variety 0 --rater.weights.sounding 0"
    assert main(["prefs", "simulate", *flags.split()]) == 0
    (rows,) = read_comparisons([choices])
    assert all(row.simulated for row in rows)
    assert {row.clip_a.tokens.shape for row in rows} == {(21, 2)}
    figures = tmp_path / "fit.json"
    flags = f"--weights {musicgen_world} --out {out} --json {figures} --selection.by comparison"
    flags += " --training.steps 60 --training.evaluate-every 30 --training.learning-rate 3e-3"
    flags += " --selection.heldout 0.2"
    assert main(["fit-reward", str(choices), *flags.split()]) == 0
    report = json.loads(figures.read_text())
    assert report["raters"] == "simulated"
    assert report["accuracy"] > 0.6
    assert report["window_steps"] == 21
    settings = {
        "out": str(tmp_path / "run"),
        "iterations": 1,
        "model": {"weights": str(musicgen_world)},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2, "prompts_per_chunk": 4},
        "algorithm": {"baseline": "group_mean"},
        "reward": {
            "weights": {"text": 0.0, "preference": 1.0},
            "preference_file": str(out / "preference.safetensors"),
        },
        "evaluation": {"prompts": 4, "audio_prompts": 1},
    }
    config = build(TrainConfig, settings, origin="test")
    summary = solo(config)
    before = summary["evaluation"]["before"]
    raw, total = (before[name]["mean"] for name in ("reward/preference", "reward"))
    assert total == pytest.approx(raw, rel=1e-5)
    assert abs(raw) > 1e-3
    checkpoint = config.out / "checkpoints" / "step_000001" / "policy.safetensors"
    exported = tmp_path / "exported"
    words = [f"path:{musicgen_world / 'musicgen'}", "--policy", str(checkpoint)]
    assert main(["export", *words, "--run", str(config.out), "--out", str(exported)]) == 0
    assert "preference model learned from raters: simulated" in (exported / "README.md").read_text()
    flags = f"--weights {musicgen_world} --prompts 2 --out {tmp_path / 'report'}"
    flags += (
        f" --reward.weights.preference 1.0 --reward.preference-file {out}/preference.safetensors"
    )
    assert main(["evaluate", *flags.split()]) == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| raters of the preference model | simulated |" in report
    assert "| reward/preference | " in report
