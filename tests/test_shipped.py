"""The shipped tiny world keeps its promises: size, card, and the sampler's exactness on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.policies.preference import PreferenceModel
from musicrl.prompts import load_prompts
from musicrl.rewards.preference import PREFERENCE_FILE, load_preference
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import Backend, SamplingConfig, grid_log_probs
from musicrl.types import Clips
from musicrl.world import SHIPPED, World

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def world() -> World:
    return World.load()


def test_shipped_weights_are_small_and_each_is_in_the_card() -> None:
    files = sorted(SHIPPED.glob("*.safetensors"))
    models = "policy policy-noisy codec embedder semantic judge quality quality-judge preference"
    assert {f.stem for f in files} == set(models.split())
    assert sum(f.stat().st_size for f in files) < 30 * MEGABYTE
    card = (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert all(f"`{f.name}`" in card for f in files)


def test_there_are_enough_held_out_prompts_and_none_is_trained_on() -> None:
    train, heldout = (load_prompts(split=split) for split in ("train", "heldout"))
    assert len(heldout) >= 160
    assert len(train) >= 1000
    assert not {p.text for p in train} & {p.text for p in heldout}


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiler)])
@pytest.mark.parametrize("top_k", [0, 20])
def test_sampled_logprobs_are_the_learners_on_trained_weights(
    world: World, top_k: int, backend: Backend
) -> None:
    off = mismatch(world, SamplingConfig(top_k=top_k, backend=backend))
    assert off.max() < 1e-5


@pytest.mark.compiler
def test_sampling_in_bfloat16_stays_near_the_learner(world: World) -> None:
    off = mismatch(world, SamplingConfig(backend="cpu", precision="bfloat16"))
    assert 1e-5 < off.mean() < 0.01
    assert off.max() < 0.1


def mismatch(world: World, sampling: SamplingConfig) -> Tensor:
    """|sampled - teacher-forced| log-probability of every token of six clips, nats."""
    prompts = load_prompts(split="heldout")[:3]
    conditions = world.conditioner([prompt.text for prompt in prompts])
    policy = world.policy.eval()
    samples = Engine(policy, sampling).generate(
        conditions, samples_per_prompt=2, seeds=np.arange(6, dtype=np.uint64)
    )
    grid = torch.from_numpy(samples.tokens.astype(np.int64))
    kept = None if samples.kept is None else torch.from_numpy(samples.kept)
    with torch.inference_mode():
        asked = conditions.repeat_interleave(2, dim=0)
        taught = grid_log_probs(policy, grid, asked, sampling, kept)
    return (taught.gather(-1, grid[..., None])[..., 0] - torch.from_numpy(samples.logprobs)).abs()


def test_the_preference_model_says_that_its_raters_were_simulated(world: World) -> None:
    _, facts = PreferenceModel.from_file(SHIPPED / PREFERENCE_FILE)
    assert facts["raters"] == "simulated"
    assert facts["simulated comparisons"] > 100_000
    assert facts["listener"] is None
    card = (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| {facts['accuracy']:.3f} ± {facts['standard error']:.3f} |" in card


def test_the_preference_model_likes_clips_that_follow_their_caption(world: World) -> None:
    """As its simulated raters do; clips of 2 s, of captions that nothing learned from."""
    prompts = load_prompts(split="heldout")[:24]
    samples = Engine(world.policy.eval(), SamplingConfig()).generate(
        world.conditioner([prompt.text for prompt in prompts]),
        samples_per_prompt=1,
        seeds=np.arange(24, dtype=np.uint64),
        num_steps=25,
    )
    clips = Clips(audio=world.decode(samples.tokens), sample_rate=16_000, tokens=samples.tokens)
    reward = load_preference(world)
    own = reward(prompts, clips)
    others = [reward(prompts[shift:] + prompts[:shift], clips) for shift in (5, 11, 17)]
    assert float(np.mean(own - np.mean(others, axis=0))) > 0.1


def test_a_true_caption_scores_above_another_on_what_the_policy_plays(world: World) -> None:
    prompts = load_prompts(split="heldout")[:12]
    texts = [prompt.text for prompt in prompts]
    samples = Engine(world.policy.eval(), SamplingConfig()).generate(
        world.conditioner(texts), samples_per_prompt=1, seeds=np.arange(12, dtype=np.uint64)
    )
    audio = torch.from_numpy(world.decode(samples.tokens))
    scores = world.embedder.embed_clip(audio) @ world.embedder.embed_text(texts).T
    others = (scores.sum() - scores.diagonal().sum()) / (12 * 11)
    assert float(scores.diagonal().mean() - others) > 0.2
