"""Memory of the sampler: what it keeps is the cache, and many steps take no more than few."""

from __future__ import annotations

import gc

import numpy as np
import torch

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import SamplingConfig

CONFIG = DelayedConfig(
    vocab=31,
    num_codebooks=2,
    num_steps=500,
    condition_levels=2,
    condition_vocab=5,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=16,
)
ROWS = 4
CACHE = ROWS * 8 * 64 * 2 * 16 * 4
"""Bytes: 8 blocks of 64 positions a row, keys and values, of width 16."""


def bytes_alive() -> int:
    """Of all tensors that anything still refers to."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    plain = [tensor for tensor in tensors if tensor.layout == torch.strided]
    packed = [tensor for tensor in tensors if tensor.layout != torch.strided]  # by oneDNN
    stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain}
    stores |= {id(tensor): tensor.numel() * tensor.element_size() for tensor in packed}
    return sum(stores.values())


def test_ten_thousand_steps_leave_what_ten_leave() -> None:
    torch.manual_seed(0)
    policy = DelayedLM(CONFIG)
    before = bytes_alive()
    engine = Engine(policy, SamplingConfig(max_rows=ROWS, block_size=64))
    prompts = torch.tensor([[0, 1], [2, 3]])
    alive = []
    for turn in range(6):  # 24 samples of up to 500 steps: 10,000 steps and more of four rows
        for row in range(4 * ROWS):
            engine.submit(prompts[row % 2], seed=row + 100 * turn, num_steps=500 - 7 * row)
        while not engine.is_idle:
            engine.step(max_steps=64)
        engine.check_integrity()
        alive.append(bytes_alive() - before)
    assert alive[-1] <= alive[0]
    slots = (ROWS + 1) * 2 * 2 * 16 * 4
    assert CACHE < alive[-1] < 1.1 * (CACHE + slots) + 100_000  # kernels' scratch, packed weights


def test_the_cache_is_made_once_for_batches_of_one_size() -> None:
    torch.manual_seed(0)
    engine = Engine(DelayedLM(CONFIG), SamplingConfig())
    places = set()
    for turn in range(3):
        seeds = np.arange(4, dtype=np.uint64) + np.uint64(turn)
        engine.generate(torch.tensor([[0, 1]]), samples_per_prompt=4, seeds=seeds, num_steps=8)
        assert engine._runner is not None
        places.add(engine._runner.cache.kv.data.data_ptr())
    assert len(places) == 1
