"""Every family of policies keeps the contract of policies/base.py, sampled and taught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.policies.table import POLICIES
from musicrl.sampler.engine import Engine, Samples
from musicrl.sampler.randomness import uniforms
from musicrl.sampler.sampling import Backend, SamplingConfig, draw, grid_log_probs, guide

Model = MusicLM | DelayedLM
SMALL = DelayedConfig(
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
HIERARCHICAL = MusicLMConfig(
    semantic_vocab=7,
    coarse_vocab=13,
    coarse_levels=1,
    num_steps=9,
    condition_levels=2,
    condition_vocab=5,
    width=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    depth_width=16,
    depth_layers=2,
    depth_heads=2,
)
LLAMA = replace(
    SMALL, num_codebooks=1, norm="rms", mlp="swiglu", positions="rotary", has_cross=False
)
FAMILIES: Mapping[str, Callable[[], Model]] = {
    "musiclm": lambda: MusicLM(HIERARCHICAL),
    "delayed": lambda: DelayedLM(SMALL),
    "delayed, grouped heads": lambda: DelayedLM(
        replace(SMALL, num_kv_heads=2, positions="rotary", mlp="swiglu")
    ),
    "delayed, one codebook": lambda: DelayedLM(LLAMA),
}
CONDITIONS = torch.tensor([[0, 1], [2, 3], [4, -1]])
SAMPLING = (
    SamplingConfig(temperature=0.9),
    SamplingConfig(temperature=0.9, guidance=2.0, top_k=6),
)
BACKENDS: tuple[Backend, ...] = ("reference", "cpu")
families = pytest.mark.parametrize("family", FAMILIES)
backends = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiler)]
)


def make(family: str) -> Model:
    torch.manual_seed(0)
    policy = FAMILIES[family]()
    torch.nn.init.normal_(policy.head, std=0.4)
    return policy


def seeds(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64)


def test_every_family_of_the_table_is_here() -> None:
    assert {name.split(",")[0] for name in FAMILIES} == POLICIES.keys()


@families
@backends
@pytest.mark.parametrize("sampling", SAMPLING)
def test_the_learner_gives_the_samplers_logprobs(
    family: str, backend: Backend, sampling: SamplingConfig
) -> None:
    policy, sampling = make(family), replace(sampling, backend=backend)
    samples = Engine(policy, sampling).generate(CONDITIONS, samples_per_prompt=4, seeds=seeds(12))
    grid = torch.from_numpy(samples.tokens).long()
    kept = None if samples.kept is None else torch.from_numpy(samples.kept)
    with torch.no_grad():
        asked = CONDITIONS.repeat_interleave(4, dim=0)
        cells = grid_log_probs(policy, grid, asked, sampling, kept)
    taught = cells.gather(-1, grid[..., None])[..., 0]
    np.testing.assert_allclose(samples.logprobs, taught.numpy(), rtol=0, atol=3e-5)


def naive(policy: Model, prompt: Tensor, seed: int, sampling: SamplingConfig) -> Samples:
    """One sample by whole forward passes, a cell at a time."""
    S, K = policy.num_steps, policy.layout.num_streams
    grid, logprobs = torch.zeros(1, S, K, dtype=torch.int64), np.zeros((1, S, K), np.float32)
    for s in range(S):
        for k, size in enumerate(policy.layout.vocab_sizes):
            logits = policy(grid, prompt[None])[:, s, k, :size]
            if sampling.guidance != 1:
                null = policy(grid, torch.full_like(prompt[None], -1))[:, s, k, :size]
                logits = guide(logits, null, sampling.guidance)
            noise = torch.from_numpy(uniforms(seeds(seed + 1)[-1:], s, k))
            drawn = draw(logits, noise, sampling)
            grid[0, s, k], logprobs[0, s, k] = drawn.tokens[0], drawn.logprobs[0]
    return Samples(tokens=grid.numpy().astype(np.int16), logprobs=logprobs, kept=None)


@families
@backends
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("room", [{}, {"block_size": 2, "num_blocks": 28}, {"max_rows": 4}])
def test_samples_equal_the_naive_loop_with_much_and_little_room(
    family: str, backend: Backend, sampling: SamplingConfig, room: dict[str, int]
) -> None:
    policy = make(family)
    engine = Engine(policy, replace(sampling, backend=backend, **room))  # type: ignore[arg-type]
    samples = engine.generate(CONDITIONS, samples_per_prompt=3, seeds=seeds(9))
    assert bool(engine.num_preempted) == ("num_blocks" in room)
    with torch.no_grad():
        for row in range(9):
            wanted = naive(policy, CONDITIONS[row // 3], row, sampling)
            assert np.array_equal(samples.tokens[row], wanted.tokens[0])
            np.testing.assert_allclose(samples.logprobs[row], wanted.logprobs[0], rtol=0, atol=3e-5)


@families
def test_a_cell_sees_no_later_step_and_its_prompt(family: str) -> None:
    policy, sampling = make(family), SAMPLING[0]
    samples = Engine(policy, sampling).generate(CONDITIONS, samples_per_prompt=1, seeds=seeds(3))
    grid = torch.from_numpy(samples.tokens).long()
    with torch.no_grad():
        before = policy(grid, CONDITIONS).softmax(-1)
        changed = grid.clone()
        changed[:, 4] = (changed[:, 4] + 1) % torch.tensor(policy.layout.vocab_sizes)
        after = policy(changed, CONDITIONS).softmax(-1)
        other = policy(grid, (CONDITIONS + 1) % 5).softmax(-1)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 5], after[:, 5])
    assert ((before - other).abs().amax((1, 2, 3)) > 1e-3).all()
