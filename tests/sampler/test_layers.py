"""All layers of a step in one call: the bits of one operation after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.sampler.cpu import CpuOps
from musicrl.sampler.engine import Engine, Samples
from musicrl.sampler.layers import Layers
from musicrl.sampler.ops import WholeStep
from musicrl.sampler.sampling import SamplingConfig
from musicrl.sampler.tile_routine import tile_routine

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(tile_routine() is None, reason="no routine multiplies bfloat16 tiles here"),
]
MUSICGEN = DelayedConfig(
    vocab=40,
    num_codebooks=2,
    num_steps=24,
    condition_levels=3,
    condition_vocab=16,
    width=48,
    num_layers=3,
    num_heads=3,
    num_kv_heads=3,
    mlp_width=100,
)
LLAMA = replace(
    MUSICGEN,
    num_codebooks=1,
    num_kv_heads=1,
    norm="rms",
    mlp="swiglu",
    positions="rotary",
    has_cross=False,
)


def sampled(config: DelayedConfig, settings: SamplingConfig, rows: int) -> Samples:
    torch.manual_seed(0)
    engine = Engine(DelayedLM(config).eval(), settings)
    conditions = torch.arange(3 * rows).view(rows, 3) % 16
    seeds = np.arange(rows, dtype=np.uint64)
    return engine.generate(conditions, samples_per_prompt=1, seeds=seeds)


@pytest.mark.parametrize("config", [MUSICGEN, LLAMA])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("rows", "num_blocks"), [(1, 0), (6, 0), (19, 0), (19, 40)])
def test_one_call_has_the_bits_of_many(
    config: DelayedConfig,
    guidance: float,
    rows: int,
    num_blocks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 40 blocks rows give theirs back and resume."""
    settings = SamplingConfig(
        backend="cpu",
        precision="bfloat16",
        guidance=guidance,
        top_k=20,
        block_size=8,
        num_blocks=num_blocks,
    )
    whole, calls = Layers.decode, list[int]()

    def counted(self: Layers, x: Tensor, step: WholeStep) -> Tensor:
        calls.append(len(x))
        return whole(self, x, step)

    monkeypatch.setattr(Layers, "decode", counted)
    once = sampled(config, settings, rows)
    assert calls
    monkeypatch.setattr(CpuOps, "decode", lambda self, *inputs: None)
    many = sampled(config, settings, rows)
    assert np.array_equal(once.tokens, many.tokens)
    assert np.array_equal(once.logprobs, many.logprobs)
    assert len(np.unique(once.tokens)) > 5


def test_new_weights_are_read() -> None:
    torch.manual_seed(0)
    policy = DelayedLM(LLAMA).eval()
    engine = Engine(policy, SamplingConfig(backend="cpu", precision="bfloat16"))
    conditions, seeds = torch.zeros(20, 3, dtype=torch.int64), np.arange(20, dtype=np.uint64)
    before = engine.generate(conditions, samples_per_prompt=1, seeds=seeds)
    with torch.no_grad():
        for layer in policy._layers:
            layer.qkv.weight.mul_(2)
            layer.down.weight.mul_(-3)
    after = engine.generate(conditions, samples_per_prompt=1, seeds=seeds)
    fresh = Engine(policy, SamplingConfig(backend="cpu", precision="bfloat16"))
    wanted = fresh.generate(conditions, samples_per_prompt=1, seeds=seeds)
    assert np.array_equal(after.logprobs, wanted.logprobs)
    assert not np.array_equal(after.logprobs, before.logprobs)
