"""The GPU backend against its contract, on the CPU: every call through a strict stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.sampler import engine as engine_module
from musicrl.sampler.backends import make_ops
from musicrl.sampler.engine import Engine
from musicrl.sampler.flash import FlashOps
from musicrl.sampler.sampling import SamplingConfig, grid_log_probs
from tests.sampler import flash_attention

FLASH = SamplingConfig(backend="flash", precision="bfloat16", block_size=256)
CONFIG = MusicLMConfig(
    semantic_vocab=11,
    coarse_vocab=17,
    coarse_levels=2,
    num_steps=12,
    condition_levels=3,
    condition_vocab=6,
    width=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    depth_width=24,
    depth_layers=2,
    depth_heads=3,
)


def again(work: Callable[[], None]) -> Callable[[], None]:
    """In place of a CUDA graph: the work itself."""
    return work


@pytest.fixture
def through_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines get the backend that a GPU would give them."""

    def ops(config: SamplingConfig, **_: object) -> FlashOps:
        assert config.backend == "flash"
        return FlashOps(flash_attention)

    monkeypatch.setattr(engine_module, "make_ops", ops)


@pytest.mark.parametrize(
    "config",
    [
        FLASH,
        replace(FLASH, guidance=1.5),
        replace(FLASH, max_rows=3),
        replace(FLASH, block_size=512, num_blocks=4),
    ],
)
def test_samples_carry_the_learners_logprobs_to_its_precision(
    through_the_stand_in: None, config: SamplingConfig
) -> None:
    torch.manual_seed(0)
    policy = MusicLM(CONFIG)
    conditions = torch.tensor([[0, 1, 2], [3, 4, -1]])
    samples = Engine(policy, config, record=again).generate(
        conditions, samples_per_prompt=4, seeds=np.arange(8, dtype=np.uint64)
    )
    grid = torch.from_numpy(samples.tokens).long()
    with torch.no_grad():
        cells = grid_log_probs(policy, grid, conditions.repeat_interleave(4, dim=0), config)
    off = (cells.gather(-1, grid[..., None])[..., 0] - torch.from_numpy(samples.logprobs)).abs()
    assert 1e-6 < off.mean() < 0.01
    assert off.max() < 0.1


def test_more_positions_than_a_page_go_on_in_the_next(through_the_stand_in: None) -> None:
    torch.manual_seed(0)
    policy = MusicLM(replace(CONFIG, num_steps=260, num_layers=1, depth_layers=1))
    samples = Engine(policy, FLASH, record=again).generate(
        torch.tensor([[0, 1, 2]]), samples_per_prompt=2, seeds=np.arange(2, dtype=np.uint64)
    )
    grid = torch.from_numpy(samples.tokens).long()
    with torch.no_grad():
        cells = grid_log_probs(policy, grid, torch.tensor([[0, 1, 2]]).expand(2, -1), FLASH)
    off = cells.gather(-1, grid[..., None])[..., 0] - torch.from_numpy(samples.logprobs)
    assert off[:, 255:].abs().max() < 0.1


def test_it_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(ValueError, match="backend flash needs precision bfloat16"):
        SamplingConfig(backend="flash")
    with pytest.raises(ValueError, match="backend flash needs a CUDA device, got cpu"):
        make_ops(FLASH, num_rows=1, device=torch.device("cpu"))


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_without_flash_attn_it_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"backend flash needs flash-attn \(pip install"):
        make_ops(FLASH, num_rows=1, device=torch.device("cuda"))


def test_pages_that_flash_attn_refuses_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size must be a multiple of 256 with backend flash"):
        make_ops(replace(FLASH, block_size=64), num_rows=1, device=torch.device("cuda"))
