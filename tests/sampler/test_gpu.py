"""The GPU backend on a GPU: flash-attn beside its stand-in, recorded steps, a short training.

Skipped where torch finds no CUDA device or flash-attn is not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.config import TrainConfig
from musicrl.policies.base import Policy
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.sampler.engine import Engine, Samples
from musicrl.sampler.sampling import SamplingConfig, grid_log_probs
from musicrl.solo import solo
from musicrl.world import World
from tests.sampler import flash_attention

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None,
    reason="needs a CUDA device and flash-attn",
)
GPU = torch.device("cuda")
FLASH = SamplingConfig(backend="flash", precision="bfloat16")
HIERARCHICAL = MusicLMConfig(
    semantic_vocab=11,
    coarse_vocab=17,
    num_steps=300,
    condition_levels=3,
    condition_vocab=6,
    width=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    depth_width=96,
    depth_heads=3,
)
DELAYED = DelayedConfig(
    vocab=19,
    num_codebooks=4,
    num_steps=40,
    condition_levels=3,
    condition_vocab=6,
    width=128,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=160,
)
ROTARY = replace(
    DELAYED, num_codebooks=1, norm="rms", mlp="swiglu", positions="rotary", has_cross=False
)
CONDITIONS = torch.tensor([[0, 1, 2], [3, 4, -1]])


def make(family: str) -> MusicLM | DelayedLM:
    torch.manual_seed(0)
    if family == "hierarchical":
        policy: MusicLM | DelayedLM = MusicLM(HIERARCHICAL)
    else:
        policy = DelayedLM(DELAYED if family == "delayed" else ROTARY)
    torch.nn.init.normal_(policy.head, std=0.2)
    return policy.to(GPU).eval()


def generate(policy: Policy, config: SamplingConfig, **how: object) -> Samples:
    seeds = np.arange(8, dtype=np.uint64)
    engine = Engine(policy, config, **how)  # type: ignore[arg-type]
    return engine.generate(CONDITIONS, samples_per_prompt=4, seeds=seeds)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 64), (6, 2, 32), (3, 3, 48)])
@pytest.mark.parametrize("page", [256, 512])
@pytest.mark.parametrize("turns", [False, True])
def test_a_decoding_step_is_the_stand_ins(
    heads: int, kv_heads: int, size: int, page: int, turns: bool
) -> None:
    """Appends in place, follows int32 tables over pages, rotates neighbouring pairs."""
    torch.manual_seed(heads)
    lens = torch.tensor([0, 5, page - 1, page, page + 77], dtype=torch.int32)
    tables = torch.randperm(12)[:10].view(5, 2).to(torch.int32)
    half = partial(torch.randn, dtype=torch.bfloat16)
    caches = [half(12, page, kv_heads, size) for _ in range(2)]
    new = [half(5, 1, count, size) for count in (heads, kv_heads, kv_heads)]
    angles = torch.outer(torch.arange(2 * page), 0.1 ** torch.arange(size // 2))
    rotary = [x.to(torch.bfloat16) for x in (angles.cos(), angles.sin())] if turns else [None] * 2

    def call(attention: object, move: Callable[[Tensor], Tensor]) -> list[Tensor]:
        inner = [move(cache.clone()) for cache in caches]
        query, key, value = map(move, new)
        cosine, sine = (None if x is None else move(x) for x in rotary)
        mixed = attention.flash_attn_with_kvcache(  # type: ignore[attr-defined]
            query,
            *inner,
            k=key,
            v=value,
            rotary_cos=cosine,
            rotary_sin=sine,
            cache_seqlens=move(lens),
            block_table=move(tables),
            causal=True,
            rotary_interleaved=True,
        )
        return [x.cpu() for x in (mixed, *inner)]

    found = call(importlib.import_module("flash_attn"), lambda x: x.to(GPU))
    for got, wanted in zip(found, call(flash_attention, lambda x: x), strict=True):
        torch.testing.assert_close(got, wanted, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 64), (6, 2, 32)])
def test_ragged_rows_are_the_stand_ins(heads: int, kv_heads: int, size: int) -> None:
    torch.manual_seed(heads)
    bounds = torch.tensor([0, 3, 4, 200], dtype=torch.int32)
    parts = [torch.randn(200, n, size, dtype=torch.bfloat16) for n in (heads, kv_heads, kv_heads)]
    found, wanted = (
        attention.flash_attn_varlen_func(
            *(part.to(device) for part in parts),
            cu_seqlens_q=bounds.to(device),
            cu_seqlens_k=bounds.to(device),
            max_seqlen_q=196,
            max_seqlen_k=196,
            causal=True,
        )
        for attention, device in (
            (importlib.import_module("flash_attn"), GPU),
            (flash_attention, torch.device("cpu")),
        )
    )
    torch.testing.assert_close(found.cpu(), wanted, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("family", ["hierarchical", "delayed", "rotary"])
@pytest.mark.parametrize(
    "config", [FLASH, replace(FLASH, guidance=1.5), replace(FLASH, top_k=5, max_rows=3)]
)
def test_samples_carry_the_learners_logprobs_to_its_precision(
    family: str, config: SamplingConfig
) -> None:
    policy = make(family)
    samples = generate(policy, config)
    grid = torch.from_numpy(samples.tokens).long().to(GPU)
    kept = None if samples.kept is None else torch.from_numpy(samples.kept).to(GPU)
    with torch.no_grad():
        asked = CONDITIONS.to(GPU).repeat_interleave(4, dim=0)
        cells = grid_log_probs(policy, grid, asked, config, kept)
    taught = cells.gather(-1, grid[..., None])[..., 0].cpu()
    off = (taught - torch.from_numpy(samples.logprobs)).abs()
    assert 1e-6 < off.mean() < 0.02
    assert off.max() < 0.3


@pytest.mark.parametrize("family", ["hierarchical", "delayed", "rotary"])
@pytest.mark.parametrize("config", [FLASH, replace(FLASH, guidance=1.5, top_k=5)])
def test_recorded_steps_are_those_that_are_computed_anew(
    family: str, config: SamplingConfig
) -> None:
    policy = make(family)
    found, wanted = generate(policy, config), generate(policy, config, record=lambda work: work)
    assert (found.tokens == wanted.tokens).mean() > 0.99  # padding may change a rounding
    assert np.isfinite(found.logprobs).all()


def test_recorded_steps_serve_the_next_weights_and_lengths() -> None:
    policy = make("hierarchical")
    engine, seeds = Engine(policy, FLASH), np.arange(8, dtype=np.uint64)
    for _ in range(3):
        for count in (8, 2, 5):
            found, wanted = (
                each.generate(
                    CONDITIONS[:1], samples_per_prompt=count, seeds=seeds[:count], num_steps=40
                )
                for each in (engine, Engine(policy, FLASH, record=lambda work: work))
            )
            assert (found.tokens == wanted.tokens).mean() > 0.99
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.02)


def test_float32_on_the_gpu_agrees_with_the_cpu() -> None:
    policy = make("hierarchical")
    found = generate(policy, SamplingConfig(backend="reference"))
    wanted = generate(policy.cpu(), SamplingConfig(backend="reference"))
    assert (found.tokens == wanted.tokens).mean() > 0.99


def test_a_run_trains_on_the_gpu_and_goes_on(configure: Callable[..., TrainConfig]) -> None:
    """With a value network, which the paper's algorithm has."""
    cluster = {"sampler_gpus": 0.5, "learner_gpus": 0.5}
    assert solo(configure(cluster=cluster, iterations=2))["iterations"] == 2
    assert solo(configure(cluster=cluster, iterations=4, resume=True))["iterations"] == 4


def test_clips_decoded_on_the_gpu_are_the_cpus(tiny_world: Path) -> None:
    world = World.load(tiny_world)
    rng = np.random.default_rng(0)
    streams = [rng.integers(0, size, (3, 5)) for size in world.layout.vocab_sizes]
    tokens = np.stack(streams, axis=2).astype(np.int16)
    wanted = world.decode(tokens)
    world.codec.to(GPU)
    np.testing.assert_allclose(world.decode(tokens), wanted, atol=1e-3)
