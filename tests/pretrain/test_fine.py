"""The fine stage's training: what is hidden, a rule that it must find, and a world that plays it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musicrl.checkpoint import load_tensors
from musicrl.codecs.fine import FineShape, FineSizes, SoundStorm
from musicrl.codecs.semantic import SemanticConfig
from musicrl.codecs.spectral import SpectralCodecConfig
from musicrl.embedders.mulan import MuLan, MuLanConfig
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.pretrain import fine as stage
from musicrl.pretrain.codec import CodecStageConfig, fit_codec
from musicrl.pretrain.fine import (
    FineStageConfig,
    Masking,
    draw_masking,
    hide,
    masked_loss,
    train_fine,
)
from musicrl.pretrain.semantic import SemanticStageConfig, fit_semantic
from musicrl.world import World

TOWERS = MuLanConfig(
    width=16, num_blocks=2, text_width=16, text_layers=1, condition_levels=2, condition_vocab=8
)
POLICY = MusicLMConfig(
    semantic_vocab=16,
    coarse_vocab=16,
    coarse_levels=2,
    codec_frames_per_step=1,
    condition_levels=2,
    condition_vocab=8,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    depth_width=16,
    depth_layers=1,
    depth_heads=2,
)


@pytest.fixture(scope="module")
def weights(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the stage reads, and a policy."""
    folder = tmp_path_factory.mktemp("fine")
    torch.manual_seed(0)
    sizes = SpectralCodecConfig(num_components=24, vocab_size=16, num_codebooks=4, fft_size=640)
    places = {"world": tiny_world, "weights": folder}
    fit_codec(
        CodecStageConfig(codec=sizes, pca_clips=32, clips_per_step=4, steps=10, **places)  # type: ignore[arg-type]
    )
    MuLan(TOWERS).save(folder / "embedder.safetensors")
    semantic = SemanticConfig(vocab_size=16, width=16)
    fit_semantic(
        SemanticStageConfig(semantic=semantic, clips=16, steps=5, vectors_per_step=500, **places)  # type: ignore[arg-type]
    )
    MusicLM(POLICY).save(folder / "policy.safetensors")
    return folder


def test_what_is_hidden() -> None:
    """Of level 1 the targets; of finer levels all from the boundary on; no coarser one."""
    codes = torch.arange(12).view(1, 3, 4).expand(2, 3, 4)
    targets = torch.tensor([[False, True, False, True], [False, False, True, False]])
    masking = Masking(torch.tensor([1, 1]), torch.tensor([0, 2]), targets)
    hidden = hide(codes, masking, mask=99)
    assert hidden[0].tolist() == [[0, 1, 2, 3], [4, 99, 6, 99], [99, 99, 99, 99]]
    assert hidden[1].tolist() == [[0, 1, 2, 3], [4, 5, 99, 7], [8, 9, 99, 99]]


def test_levels_shares_and_prompts_are_drawn_as_soundstorm_draws_them() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = draw_masking((4000, 5, 50), 2, generator, prompted=0.25)
    counts = torch.bincount(drawn.level, minlength=5)
    assert counts[:2].sum() == 0
    assert (counts[2:] - 4000 / 3).abs().max() < 120
    plain = drawn.boundary == 0
    assert plain.float().mean().item() == pytest.approx(0.75 + 0.25 / 50, abs=0.02)
    assert drawn.is_target[plain].float().mean().item() == pytest.approx(2 / math.pi, abs=0.02)
    before = torch.arange(50) < drawn.boundary[:, None]
    assert not (drawn.is_target & before).any()


def test_a_rule_is_found_and_filled_in() -> None:
    """Level 3 is one of the coarse codes, as the semantic token says, level 4 the next frame's level
    3: every input is needed, and a look ahead."""
    shape = FineShape(
        semantic_vocab=3, vocab_size=8, coarse_levels=2, num_levels=4, frames_per_step=2
    )
    torch.manual_seed(0)
    model = SoundStorm(shape, FineSizes(width=32, num_layers=2, num_heads=2, iterations=3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        semantic = torch.randint(3, (size, 6), generator=generator)
        first, second = torch.randint(8, (2, size, 12), generator=generator)
        third = torch.where(semantic.repeat_interleave(2, 1) == 0, first, second)
        return semantic, torch.stack([first, second, third, third.roll(-1, 1)], 1)

    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 150)
        semantic, codes = batch(32)
        masking = draw_masking(codes.shape, 2, generator, prompted=0.0)
        loss = masked_loss(model, semantic, codes, masking)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    semantic, codes = batch(20)
    filled = model.eval().fill(semantic, codes[:, :2])
    right = (filled == codes)[:, 2:, :-1].float().mean((0, 2))
    assert right.min() > 0.95


def test_the_stage_resumes_and_the_world_plays_all_levels(
    tiny_world: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FineStageConfig(
        world=tiny_world,
        weights=weights,
        coarse_levels=2,
        model=FineSizes(width=16, num_layers=1, num_heads=2, iterations=3),
        steps=30,
        batch_clips=8,
        measured=4,
        learning_rate=1e-2,
        checkpoint_every=10,
    )
    tokens = np.random.default_rng(0).integers(0, 16, (3, 75, 3)).astype(np.int16)
    coarse = World.load(weights)
    assert coarse.fine is None
    assert coarse.codes_of(tokens).shape == (3, 2, 75)
    masked, calls = stage.masked_loss, list[None]()

    def stopped(*args: object) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return masked(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "masked_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_fine(config)
    facts = train_fine(config)
    assert len(calls) == 25 + 10
    first, _ = load_tensors(weights / "fine.safetensors", kind="fine")
    (weights / "fine.safetensors").unlink()
    assert train_fine(config) == facts
    second, _ = load_tensors(weights / "fine.safetensors", kind="fine")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert facts["nll/level3"] < math.log(16) - 0.05
    assert facts["log_spectral_distance/ideal"] < facts["log_spectral_distance/coarse"]
    check_world(weights, coarse, tokens)


def check_world(weights: Path, coarse: World, tokens: np.ndarray) -> None:
    """All levels sound, the coarse ones as before; nothing of the stage can learn; others are
    refused."""
    world = World.load(weights)
    codes = world.codes_of(tokens)
    assert codes.shape == (3, 4, 75)
    assert torch.equal(codes[:, :2], coarse.codes_of(tokens))
    audio = world.decode(tokens)
    np.testing.assert_allclose(audio, world.codec.decode(codes).numpy(), atol=1e-5)
    assert np.abs(audio - coarse.decode(tokens)).max() > 1e-3
    assert isinstance(world.fine, SoundStorm)
    assert not any(parameter.requires_grad for parameter in world.fine.parameters())
    SoundStorm(replace(world.fine.shape, coarse_levels=1), world.fine.sizes).save(
        weights / "fine.safetensors"
    )
    with pytest.raises(ValueError, match="the fine stage is of FineShape"):
        World.load(weights)
    (weights / "fine.safetensors").unlink()
