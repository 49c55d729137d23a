"""Recorded steps: fixed buffers and padding change no sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.sampler import graphs
from musicrl.sampler.engine import Engine, Samples
from musicrl.sampler.sampling import SamplingConfig

PLAIN = SamplingConfig(backend="reference", block_size=4)
DELAYED = DelayedConfig(
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
    num_steps=9,
    condition_levels=2,
    condition_vocab=5,
    width=24,
    num_layers=2,
    depth_width=24,
)


class Recorder:
    """Records as a CUDA graph does: the work is done once aside, and then only when replayed."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        self.num_recorded += 1
        return work


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        replace(PLAIN, guidance=2.0),
        replace(PLAIN, top_k=3, guidance=0.5),
        replace(PLAIN, max_rows=3),
        replace(PLAIN, num_blocks=12),
    ],
)
@pytest.mark.parametrize("family", ["hierarchical", "delayed"])
def test_replayed_steps_give_the_same_samples(family: str, config: SamplingConfig) -> None:
    torch.manual_seed(0)
    policy = MusicLM(HIERARCHICAL) if family == "hierarchical" else DelayedLM(DELAYED)
    torch.nn.init.normal_(policy.head, std=0.4)
    conditions, seeds = torch.tensor([[0, 1], [2, 3], [4, -1]]), np.arange(15, dtype=np.uint64)
    recorder = Recorder()
    found, wanted = (
        Engine(policy, config, record=record).generate(
            conditions, samples_per_prompt=5, seeds=seeds
        )
        for record in (recorder, None)
    )
    assert recorder.num_recorded >= 2  # of several sizes or widths of tables
    assert np.array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, rtol=0, atol=1e-5)
    assert (found.kept is None) == (config.top_k == 0)
    if found.kept is not None and wanted.kept is not None:
        assert np.array_equal(found.kept, wanted.kept)


def test_a_graph_serves_all_that_fit_its_size() -> None:
    torch.manual_seed(0)
    policy, recorder = DelayedLM(DELAYED), Recorder()
    engine = Engine(policy, replace(PLAIN, max_rows=8, block_size=16), record=recorder)
    for seed in range(8):
        engine.submit(torch.tensor([0, 1]), seed=seed, num_steps=3 + seed // 2)
    while not engine.is_idle:
        engine.step()
    assert recorder.num_recorded == 3  # 8 samples, then 6 of at most 8, then 4, 2 of at most 2
    assert graphs.SIZES[:4] == (1, 2, 4, 8)


def test_recorded_steps_serve_the_next_weights_too() -> None:
    torch.manual_seed(0)
    policy, recorder = MusicLM(HIERARCHICAL), Recorder()
    engine = Engine(policy, PLAIN, record=recorder)

    def generate(engine: Engine) -> Samples:
        seeds = np.arange(4, dtype=np.uint64)
        return engine.generate(torch.tensor([[0, 1]]), samples_per_prompt=4, seeds=seeds)

    first, recorded = generate(engine), recorder.num_recorded
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    second = generate(engine)
    wanted = generate(Engine(policy, PLAIN))
    assert recorder.num_recorded == recorded
    assert not np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(second.tokens, wanted.tokens)
    policy.head = torch.nn.Parameter(policy.head.detach() + torch.randn_like(policy.head))
    moved, wanted = generate(engine), generate(Engine(policy, PLAIN))
    assert np.array_equal(moved.tokens, wanted.tokens)
