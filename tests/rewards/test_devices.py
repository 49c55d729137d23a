"""Rewards on another device: what is computed there, and that clips and scores are the CPU's.

torch's `meta` device computes shapes alone and refuses any operation on tensors of two devices and
any copy back, so that a reward which gets as far as copying its scores has all its inputs there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from musicrl.embedders.mulan import MuLan, MuLanConfig
from musicrl.policies.preference import PreferenceModel
from musicrl.rewards.base import Movable, Reward
from musicrl.rewards.mix import RewardMix
from musicrl.rewards.mos import MosConfig, MosPredictor
from musicrl.rewards.preference import Preference
from musicrl.rewards.quality import Quality
from musicrl.rewards.text import TextAdherence
from musicrl.types import Clips, Prompt
from musicrl.world import World

PROMPTS = [Prompt(id=str(i), text=text) for i, text in enumerate(["a slow harp", "a fast flute"])]
CPU, META = torch.device("cpu"), torch.device("meta")


def text(world: World) -> Reward:
    return TextAdherence(
        MuLan(MuLanConfig(width=8, num_blocks=1, text_width=8, window_seconds=0.5))
    )


def quality(world: World) -> Reward:
    return Quality(MosPredictor(MosConfig()).eval())


def preference(world: World) -> Reward:
    return Preference(PreferenceModel.from_policy(world.policy).eval(), world, window=3)


REWARDS = pytest.mark.parametrize("make", [text, quality, preference])


@pytest.fixture
def world(tiny_world: Path) -> World:
    return World.load(tiny_world)


def clips(world: World) -> Clips:
    noise = np.random.default_rng(0)
    K = world.layout.num_streams
    return Clips(
        audio=noise.uniform(-0.5, 0.5, (2, 16_000)).astype(np.float32),
        sample_rate=16_000,
        tokens=noise.integers(0, 8, (2, 5, K)).astype(np.int16),
    )


@REWARDS
def test_all_that_a_reward_computes_with_is_on_its_device(
    make: Callable[[World], Reward], world: World
) -> None:
    torch.manual_seed(0)
    reward, played = make(world), clips(world)
    assert isinstance(reward, Movable)
    reward.move(CPU)
    before = reward(PROMPTS, played)
    assert np.isfinite(before).all()
    reward.move(META)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        reward(PROMPTS, played)


class Loudness:
    """A reward without a model: nothing to move."""

    name = "loudness"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        levels: NDArray[np.float32] = np.abs(clips.audio).mean(1)
        return levels


def test_a_mix_moves_those_that_can_move(world: World) -> None:
    rewards = {"loudness": Loudness(), "preference": preference(world)}
    mix = RewardMix(rewards, dict.fromkeys(rewards, 1.0))
    mix.move(META)
    terms = mix(PROMPTS, clips(world)).terms
    assert np.isfinite(terms["loudness"]).all()
    assert np.isnan(terms["preference"]).all(), "its scores cannot be copied from there"
