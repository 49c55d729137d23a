"""Real clips for evaluation: their tokens, their captions, and how much these matter."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from musicrl.evaluation.captions import cannot_tokenise, caption_gap, tokenise
from musicrl.evaluation.unseen import is_unseen
from musicrl.policies.musiclm import MusicLM
from musicrl.pretrain.attributes import Attributes
from musicrl.pretrain.prompts import count_unseen
from musicrl.pretrain.real import real_clips, rendered_clips
from musicrl.pretrain.tokens import TokenData
from musicrl.pretrain.world import WorldData
from musicrl.prompts import attribute, load_prompts, mismatched
from musicrl.world import World
from tests.pretrain.small import POLICY

ALL_OPEN: dict[str, str | None] = dict.fromkeys(Attributes.__dataclass_fields__)


@pytest.fixture
def world(weights: Path, tmp_path: Path) -> World:
    """The small world with a policy that has learned nothing."""
    folder = Path(shutil.copytree(weights, tmp_path / "weights"))
    torch.manual_seed(2)
    MusicLM(POLICY).save(folder / "policy.safetensors")
    return World.load(folder)


def test_a_soundfont_plays_the_test_split_with_its_captions(
    tiny_world: Path, soundfont: Path
) -> None:
    stored = real_clips(tiny_world, 5)
    played = rendered_clips(soundfont, 5, sample_rate=16_000, seconds=6.0)
    np.testing.assert_array_equal(played.clips.audio, stored.clips.audio)
    assert played.prompts == stored.prompts
    truth = WorldData(tiny_world, "test").attributes[:5]
    assert [attribute(p, "instrument") for p in stored.prompts] == [a.instrument for a in truth]
    assert stored.solo.tolist() == [a.texture == "solo" for a in truth]


def test_held_out_combinations_are_those_that_the_prompt_stage_counts(
    tiny_world: Path, weights: Path
) -> None:
    real = real_clips(tiny_world, 4)
    trained = WorldData(tiny_world, "train").attributes
    prompts = load_prompts(weights / "prompts.parquet", split="heldout")
    new = is_unseen(prompts, real.trained)
    assert new.sum() == count_unseen(
        [dict(ALL_OPEN, **dict(p.attributes)) for p in prompts], trained
    )
    assert 0 < new.sum() < len(prompts)
    seen = next(p for p, is_new in zip(prompts, new, strict=True) if not is_new)
    assert any(attributes.combination == frozenset(seen.attributes) for attributes in trained)


def test_the_cost_of_another_caption_is_that_of_the_pretraining_tokens(
    tiny_world: Path, world: World
) -> None:
    real = real_clips(tiny_world, 20)
    grids = tokenise(world, real.clips)
    stored = TokenData(world.folder, WorldData(tiny_world, "test"), "test", POLICY.layout)
    np.testing.assert_array_equal(grids, stored.grids[:20].numpy())
    found = caption_gap(world, grids, real.prompts)
    with torch.no_grad():
        own, other = (
            -world.policy.token_logprobs(
                stored.grids[:20].long(), world.conditioner([p.text for p in prompts])
            )[:, :, 0].mean(1)
            for prompts in (real.prompts, mismatched(real.prompts))
        )
    np.testing.assert_allclose(found, (other - own).double().numpy(), atol=1e-5)
    assert abs(found.mean()) > 1e-4


def test_why_captions_cannot_be_compared_is_said(world: World, tiny_world: Path) -> None:
    prompts = real_clips(tiny_world, 4).prompts
    assert cannot_tokenise(world, prompts) is None
    assert cannot_tokenise(world, prompts[:1]) == "the real clips have no two different captions"
    (world.folder / "semantic.safetensors").unlink()
    assert "no semantic.safetensors" in str(cannot_tokenise(world, prompts))
