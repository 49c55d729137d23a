"""The delayed decoder: its empty cells, its file, and MusicGen's decoder of equal weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import SamplingConfig

CONFIG = DelayedConfig(
    vocab=13,
    num_codebooks=3,
    num_steps=9,
    condition_levels=2,
    condition_vocab=5,
    width=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    mlp_width=40,
)


def make_policy(config: DelayedConfig = CONFIG) -> DelayedLM:
    torch.manual_seed(0)
    return DelayedLM(config)


@pytest.mark.parametrize("steps", [3, 6, 9])
def test_cells_without_a_frame_are_certain_and_the_others_never_special(steps: int) -> None:
    policy = make_policy()
    samples = Engine(policy, SamplingConfig()).generate(
        torch.tensor([[0, 1]]),
        samples_per_prompt=20,
        seeds=np.arange(20, dtype=np.uint64),
        num_steps=steps,
    )
    codes = policy.layout.to_codes(samples.tokens)
    assert codes.shape == (20, 3, steps - 2)
    assert codes.max() < 13
    assert np.array_equal(policy.layout.interleave(codes), samples.tokens)
    empty = samples.tokens == policy.layout.special
    assert empty.sum() == 20 * 6  # 0 + 1 + 2 cells on either side
    assert not samples.logprobs[empty].any()
    assert (samples.logprobs[~empty] < 0).all()


def test_it_learns_from_whole_grids_with_finite_gradients() -> None:
    policy = make_policy()
    codes = np.random.default_rng(0).integers(0, 13, (4, 3, 7))
    grid = torch.from_numpy(policy.layout.interleave(codes)).long()
    logits = policy(grid, torch.zeros(4, 2, dtype=torch.int64))
    logprobs = logits.log_softmax(-1).gather(-1, grid[..., None])
    assert torch.isfinite(logprobs).all()
    (-logprobs.sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_file_gives_the_same_policy(tmp_path: Path) -> None:
    policy, path = make_policy(), tmp_path / "policy.safetensors"
    policy.save(path)
    again = DelayedLM.from_file(path)
    assert again.config == policy.config
    grid = torch.zeros(1, 9, 3, dtype=torch.int64)
    conditions = torch.tensor([[1, 2]])
    assert torch.equal(policy(grid, conditions), again(grid, conditions))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"width": 25}, "width 25 does not split into 4 heads"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 4"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"vocab": 0}, "vocab must be a whole number above 0"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(CONFIG, **values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown key 'depth'"):
        DelayedConfig.from_mapping({"depth": 3})
