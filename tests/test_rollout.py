"""Rollouts are a pure function of the weights and of the numbers that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from musicrl.evaluation.heldout import EvaluationChunk
from musicrl.policies.flat import checksum, flatten
from musicrl.rollout import RolloutWorker, chunk_seeds, rollout_bytes
from musicrl.sampler.randomness import sample_seed
from musicrl.sampler.sampling import SamplingConfig, log_probs
from musicrl.types import Clips, Prompt, Rollouts
from musicrl.world import World

PROMPTS = tuple(
    Prompt(id=str(i), text=f"a slow tune on the {name}") for i, name in enumerate("abc")
)


def make(
    world: World,
    prompts: tuple[Prompt, ...],
    first: int,
    *,
    clip_seconds: float | None = None,
    **numbers: int,
) -> tuple[Rollouts, Clips]:
    settings = {"step": 3, "run_seed": 5, "samples_per_prompt": 2, "version": 9, **numbers}
    worker = RolloutWorker(world, SamplingConfig())
    return worker.generate(prompts, first_prompt_index=first, clip_seconds=clip_seconds, **settings)


@pytest.fixture
def world(tiny_world: Path) -> World:
    return World.load(tiny_world)


def test_the_samples_of_a_prompt_are_adjacent_rows_of_one_group(world: World) -> None:
    rollouts, clips = make(world, PROMPTS, 4)
    assert [p.id for p in rollouts.prompts] == ["0", "0", "1", "1", "2", "2"]
    assert rollouts.group.tolist() == [4, 4, 5, 5, 6, 6]
    assert rollouts.version.tolist() == [9] * 6
    assert rollouts.seeds.tolist() == [sample_seed(5, 3, p, g) for p in (4, 5, 6) for g in (0, 1)]
    expected = world.conditioner([p.text for p in PROMPTS]).repeat_interleave(2, 0)
    assert rollouts.conditions.tolist() == expected.tolist()
    np.testing.assert_array_equal(clips.audio, world.decode(rollouts.tokens))


def test_a_prompt_alone_gives_what_it_gives_among_others(world: World) -> None:
    together, clips = make(world, PROMPTS, 4)
    alone, clip = make(world, PROMPTS[1:2], 5)
    np.testing.assert_array_equal(alone.tokens, together.tokens[2:4])
    np.testing.assert_allclose(alone.logprobs, together.logprobs[2:4], atol=1e-6)
    np.testing.assert_allclose(clip.audio, clips.audio[2:4], atol=1e-6)


@pytest.mark.parametrize("number", ["step", "run_seed"])
def test_another_step_or_seed_gives_other_clips(world: World, number: str) -> None:
    first, _ = make(world, PROMPTS, 0)
    other, _ = make(world, PROMPTS, 0, **{number: 4})
    assert (first.tokens != other.tokens).any()


def test_the_log_probabilities_are_those_of_the_teacher_forced_policy(world: World) -> None:
    rollouts, _ = make(world, PROMPTS, 0)
    tokens = torch.tensor(rollouts.tokens).long()
    logits = world.policy(tokens, torch.tensor(rollouts.conditions).long())
    expected = log_probs(logits, SamplingConfig()).gather(-1, tokens[..., None])[..., 0]
    np.testing.assert_allclose(rollouts.logprobs, expected.detach().numpy(), atol=1e-5)


def test_applied_weights_are_the_ones_that_sample(world: World, tiny_world: Path) -> None:
    other = World.load(tiny_world)
    for parameter in other.policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    worker = RolloutWorker(world, SamplingConfig())
    worker.apply(flatten(other.policy, version=1))
    settings = {"step": 3, "run_seed": 5, "samples_per_prompt": 2, "version": 9}
    moved, _ = worker.generate(PROMPTS, first_prompt_index=4, **settings)
    np.testing.assert_array_equal(moved.tokens, make(other, PROMPTS, 4)[0].tokens)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_in_shared_memory_sample_the_same_and_stay_as_they_are(
    world: World, tiny_world: Path, precision: Literal["float32", "bfloat16"]
) -> None:
    other, settings = World.load(tiny_world), {"samples_per_prompt": 2, "version": 1}
    seeds = {"step": 3, "run_seed": 5, "first_prompt_index": 4}
    config = SamplingConfig(guidance=2.0, top_k=3, precision=precision)
    owner, reader = RolloutWorker(world, config), RolloutWorker(other, config)
    shared = []
    for std in (0.5, 0.2):
        for parameter in world.policy.parameters():
            torch.nn.init.normal_(parameter, std=std)
        shared.append(flatten(world.policy, version=1))
        reader.apply(shared[-1], is_shared=True)
        assert np.shares_memory(next(reader.world.policy.parameters()).detach(), shared[-1].flat)
        wanted, _ = owner.generate(PROMPTS, **settings, **seeds)
        found, _ = reader.generate(PROMPTS, **settings, **seeds)
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        np.testing.assert_array_equal(found.logprobs, wanted.logprobs)
    reader.apply(flatten(World.load(tiny_world).policy, version=2))
    assert all(checksum(weights) == weights.checksum for weights in shared)


def test_a_shorter_clip_is_the_beginning_of_the_whole_one(world: World) -> None:
    whole, full = make(world, PROMPTS, 0)
    short, clips = make(world, PROMPTS, 0, clip_seconds=0.24)
    np.testing.assert_array_equal(short.tokens, whole.tokens[:, :3])
    np.testing.assert_allclose(short.logprobs, whole.logprobs[:, :3], atol=1e-6)
    assert clips.audio.shape[1] == round(0.24 * world.sample_rate) < full.audio.shape[1]


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.48, float("nan")])
def test_a_length_that_the_policy_does_not_play_is_refused(world: World, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^clip_seconds .* multiple of 0\.08 up to 0\.4,"):
        make(world, PROMPTS, 0, clip_seconds=seconds)


def test_held_out_clips_have_the_seeds_of_the_evaluation(world: World) -> None:
    worker = RolloutWorker(world, SamplingConfig())
    rollouts, _ = worker.generate_heldout(PROMPTS, first=8, version=2)
    chunk = EvaluationChunk(first=8, prompts=PROMPTS, mismatched=PROMPTS)
    np.testing.assert_array_equal(rollouts.seeds, chunk.seeds())


def test_bytes_are_those_of_all_arrays(world: World) -> None:
    rollouts, _ = make(world, PROMPTS, 0)
    B, S, K, C = 6, 5, 5, 2
    assert rollout_bytes(rollouts) == B * (S * K * (2 + 4) + C * 2 + 4 + 8 + 8)


def test_seeds_of_different_samples_differ() -> None:
    seeds = chunk_seeds(0, 0, range(50), 20)
    assert len(set(seeds.tolist())) == 1000
