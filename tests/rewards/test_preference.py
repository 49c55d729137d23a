"""The preference reward: windows by hand, what it refuses, and a run that is rewarded by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cluster.cli import EXIT_FAULT, main
from musicrl.config import TrainConfig
from musicrl.evaluation.config import EvaluateConfig
from musicrl.policies.preference import PreferenceModel
from musicrl.rewards import RewardConfig, make_mix
from musicrl.rewards.preference import PREFERENCE_FILE, Preference, load_preference
from musicrl.rollout import RolloutWorker
from musicrl.sampler.sampling import SamplingConfig
from musicrl.solo import solo
from musicrl.types import Clips, Prompt
from musicrl.world import World

Configure = Callable[..., TrainConfig]
PROMPTS = [Prompt(id=str(i), text=text) for i, text in enumerate(["a slow harp", "a fast flute"])]
WEIGHTS = {"text": 0.0, "preference": 1.0}


@pytest.fixture(scope="module")
def world(tiny_world: Path) -> World:
    return World.load(tiny_world)


def make_model(world: World) -> PreferenceModel:
    torch.manual_seed(1)
    model = PreferenceModel.from_policy(world.policy)
    nn.init.normal_(model.head.weight)
    return model.eval().requires_grad_(False)


def play(world: World) -> Clips:
    """Two clips of each prompt."""
    _, clips = RolloutWorker(world, SamplingConfig()).generate(
        PROMPTS, first_prompt_index=0, step=0, run_seed=0, samples_per_prompt=2, version=0
    )
    return clips


def test_the_first_and_the_last_window_are_averaged(world: World) -> None:
    """Of five steps and windows of three: steps 0, 1, 2 and steps 2, 3, 4."""
    model, clips = make_model(world), play(world)
    assert clips.tokens is not None
    rows = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    scores = Preference(model, world, window=3, batch=3)(rows, clips)
    tokens = torch.from_numpy(clips.tokens.astype(np.int64))
    for row, prompt in enumerate(rows):
        asked = world.conditioner([prompt.text])
        ends = [model(tokens[[row], part], asked) for part in (slice(0, 3), slice(2, 5))]
        assert scores[row] == pytest.approx(float(sum(ends)) / 2, abs=1e-5)
    whole = Preference(model, world, window=9)(rows, clips)
    alone = model(tokens[:1], world.conditioner([PROMPTS[0].text]))
    assert whole[0] == pytest.approx(float(alone), abs=1e-5)


def test_clips_carry_the_tokens_that_they_were_decoded_from(world: World) -> None:
    clips = play(world)
    assert clips.tokens is not None
    np.testing.assert_array_equal(world.decode(clips.tokens), clips.audio)


def test_what_it_cannot_read_is_refused(world: World) -> None:
    reward, clips = Preference(make_model(world), world, window=3), play(world)
    with pytest.raises(ValueError, match="reads tokens, and audio files have none"):
        reward(PROMPTS, Clips(audio=clips.audio[:2], sample_rate=clips.sample_rate))
    assert clips.tokens is not None
    narrow = Clips(audio=clips.audio, sample_rate=16000, tokens=clips.tokens[..., :3])
    with pytest.raises(ValueError, match="grids of 3 streams, the model reads 5"):
        reward(PROMPTS, narrow)


def test_a_world_without_a_model_says_what_makes_one(world: World, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        make_mix(RewardConfig(weights={"preference": 1.0}), world)
    assert str(caught.value) == (
        f"no preference.safetensors in {world.folder}: "
        "`musicrl fit-reward` makes it from comparisons"
    )
    with pytest.raises(FileNotFoundError, match=r"no other\.safetensors in"):
        load_preference(world, tmp_path / "other.safetensors")


def test_settings_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="preference_file is set, but 'preference' has no weight"):
        RewardConfig(preference_file=tmp_path / "reward.safetensors")
    with pytest.raises(ValueError, match="audio files have none"):
        EvaluateConfig(audio=(tmp_path,), reward=RewardConfig(weights=WEIGHTS))
    flags = ["--reward.weights", "{preference: 1.0}"]
    assert main(["score", "a slow harp", "a.wav", *flags]) == EXIT_FAULT
    assert "audio files have none" in capsys.readouterr().err


def test_a_run_is_rewarded_with_the_raw_score(
    world: World, configure: Configure, tmp_path: Path
) -> None:
    file = tmp_path / PREFERENCE_FILE
    make_model(world).save(file, {"window_steps": 4})
    summary = solo(
        configure(iterations=1, reward={"weights": WEIGHTS, "preference_file": str(file)})
    )
    before = summary["evaluation"]["before"]
    raw, total = (before[name]["mean"] for name in ("reward/preference", "reward"))
    assert total == pytest.approx(raw, rel=1e-5)
    assert abs(raw) > 1e-3
    assert summary["failed_rewards"] in ({}, {"preference": 0, "text": 0})
