from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from musicrl.codecs.fine import (
    FineShape,
    FineSizes,
    SoundStorm,
    clip_generator,
    num_masked,
    refine,
    uniforms,
)

SHAPE = FineShape(semantic_vocab=5, vocab_size=7, coarse_levels=2, num_levels=4, frames_per_step=2)
SIZES = FineSizes(width=16, num_layers=1, num_heads=2, iterations=4)


@pytest.fixture
def model() -> SoundStorm:
    torch.manual_seed(0)
    return SoundStorm(SHAPE, SIZES).eval()


def clips(count: int, steps: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    semantic = torch.randint(5, (count, steps), generator=generator)
    return semantic, torch.randint(7, (count, 2, 2 * steps), generator=generator)


def test_fewer_cells_stay_masked_by_a_cosine() -> None:
    """10 cos(pi / 8), 10 cos(pi / 4), 10 cos(3 pi / 8), 0."""
    assert [num_masked(10, done, 4) for done in (1, 2, 3, 4)] == [9, 7, 3, 0]
    assert num_masked(10, 1, 1) == 0


def test_a_pass_keeps_what_is_known_and_what_it_is_surest_of() -> None:
    known = torch.tensor([[1, 9, 9, 9]])
    share = torch.tensor([[0.01, 0.98, 0.01], [0.1, 0.1, 0.8], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1]])
    logits = share.log()[None]
    done = refine(known, logits, None, mask=9, kept=2, temperature=1.0)
    assert done.tolist() == [[1, 2, 9, 9]]
    done = refine(done, logits, None, mask=9, kept=1, temperature=1.0)
    assert done.tolist() == [[1, 2, 9, 1]]
    assert refine(done, logits, None, mask=9, kept=0, temperature=1.0).tolist() == [[1, 2, 0, 1]]


def test_draws_follow_the_distribution_at_its_temperature() -> None:
    share = torch.tensor([0.6, 0.3, 0.1])
    uniform = uniforms([np.random.default_rng(0)], 20_000, 3)
    logits = share.log().expand(1, 20_000, 3)
    known = torch.full((1, 20_000), 3)
    drawn = refine(known, logits, uniform, mask=3, kept=0, temperature=0.5)
    wanted = share.square() / share.square().sum()
    found = torch.bincount(drawn[0], minlength=3) / 20_000
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)


def test_filling_keeps_the_coarse_levels_and_is_decided_by_the_clip(model: SoundStorm) -> None:
    semantic, codes = clips(3)
    filled = model.fill(semantic, codes)
    assert filled.shape == (3, 4, 12)
    assert torch.equal(filled[:, :2], codes)
    assert filled.max() < model.mask
    assert torch.equal(model.fill(semantic, codes), filled)
    assert torch.equal(model.fill(semantic[1:2], codes[1:2])[0], filled[1])
    first = clip_generator(semantic[0], codes[0]).random()
    assert first != clip_generator(semantic[1], codes[1]).random()
    assert first != clip_generator(semantic[1], codes[0]).random()


def test_it_looks_both_ways_and_at_every_level(model: SoundStorm) -> None:
    semantic, coarse = clips(1)
    codes = torch.cat([coarse, torch.full((1, 2, 12), model.mask)], 1)
    before = model(semantic, codes)
    for level, frame in ((0, 11), (1, 0), (2, 11)):
        changed = codes.clone()
        changed[0, level, frame] = (changed[0, level, frame] + 1) % 7
        difference = (model(semantic, changed) - before).abs().amax((0, 1, 3))
        assert difference.min() > 0, (level, frame)
    other = semantic.clone()
    other[0, 3] = (other[0, 3] + 1) % 5
    assert not torch.allclose(model(other, codes)[:, :, 6:8], before[:, :, 6:8])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_fills_in_what_the_cpu_does(model: SoundStorm) -> None:
    semantic, codes = clips(4)
    wanted = model.fill(semantic, codes)
    found = model.to("cuda").fill(semantic.cuda(), codes.cuda()).cpu()
    assert (found == wanted).float().mean() > 0.9


def test_a_file_brings_back_the_decoder(model: SoundStorm, tmp_path: Path) -> None:
    model.save(tmp_path / "fine.safetensors", nll=1.5)
    loaded = SoundStorm.from_file(tmp_path / "fine.safetensors")
    assert (loaded.shape, loaded.sizes) == (SHAPE, SIZES)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    semantic, codes = clips(2)
    masked = torch.cat([codes, torch.full((2, 2, 12), model.mask)], 1)
    torch.testing.assert_close(
        loaded(semantic, masked), model(semantic, masked), atol=1e-2, rtol=1e-2
    )


def test_sizes_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="4 coarse of 4 levels leave no fine ones"):
        FineShape(semantic_vocab=5, vocab_size=7, coarse_levels=4, num_levels=4, frames_per_step=1)
    with pytest.raises(ValueError, match="kernel must be odd, got 4"):
        FineSizes(kernel=4)
    with pytest.raises(ValueError, match="width 18 is no multiple of 2 num_heads 4"):
        FineSizes(width=18)
