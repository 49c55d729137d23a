"""The engine: exact log-probabilities, shared prompts, independence of the batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from musicrl.policies.decoding import DecodingCache
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.sampler.engine import Engine
from musicrl.sampler.ops import ReferenceOps
from musicrl.sampler.randomness import sample_seed
from musicrl.sampler.sampling import Backend, SamplingConfig, log_probs

CONFIG = MusicLMConfig(
    semantic_vocab=11,
    coarse_vocab=17,
    coarse_levels=2,
    num_steps=12,
    condition_levels=3,
    condition_vocab=6,
    width=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    depth_width=24,
    depth_layers=2,
    depth_heads=3,
)
PLAIN = SamplingConfig(temperature=1.0)
DISTRIBUTIONS = [
    PLAIN,
    SamplingConfig(temperature=0.7),
    SamplingConfig(temperature=1.3, top_k=4),
    SamplingConfig(temperature=0.99, top_k=14),
]
BACKENDS: tuple[Backend, ...] = ("reference", "cpu")
SETTINGS = [
    *(replace(config, backend="reference") for config in DISTRIBUTIONS),
    *(
        pytest.param(replace(config, backend="cpu"), marks=pytest.mark.compiler)
        for config in DISTRIBUTIONS
    ),
]


class CountingLM(MusicLM):
    """Records the shape of every prefill."""

    def __init__(self, config: MusicLMConfig) -> None:
        super().__init__(config)
        self.prefills: list[tuple[int, ...]] = []

    def prefill(self, conditions: Tensor, cache: DecodingCache) -> None:
        self.prefills.append(tuple(conditions.shape))
        super().prefill(conditions, cache)


def make_policy(config: MusicLMConfig = CONFIG) -> CountingLM:
    torch.manual_seed(0)
    policy = CountingLM(config)
    torch.nn.init.normal_(policy.head, std=0.5)
    return policy


def make_conditions(P: int) -> Tensor:
    conditions = torch.arange(P * 3).view(P, 3) % 7 - 1
    return conditions.clamp(max=CONFIG.condition_vocab - 1)


def make_seeds(P: int, G: int) -> NDArray[np.uint64]:
    seeds = [sample_seed(1, 0, p, g) for p in range(P) for g in range(G)]
    return np.array(seeds, dtype=np.uint64)


@pytest.mark.parametrize("config", SETTINGS)
def test_logprobs_equal_the_teacher_forced_ones(config: SamplingConfig) -> None:
    policy, P, G = make_policy(), 3, 5
    conditions = make_conditions(P)
    tokens, logprobs = Engine(policy, config).generate(
        conditions, samples_per_prompt=G, seeds=make_seeds(P, G)
    )
    grid = torch.tensor(tokens).long()
    with torch.no_grad():
        logits = policy(grid, conditions.repeat_interleave(G, dim=0))
    wanted = log_probs(logits, config).gather(-1, grid[..., None])[..., 0]
    np.testing.assert_allclose(logprobs, wanted.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", SETTINGS)
def test_tokens_stay_in_the_vocabulary_of_their_stream(config: SamplingConfig) -> None:
    tokens, logprobs = Engine(make_policy(), config).generate(
        make_conditions(4), samples_per_prompt=8, seeds=make_seeds(4, 8)
    )
    assert tokens.dtype == np.int16
    assert logprobs.dtype == np.float32
    assert tokens.min() == 0
    for k, size in enumerate(CONFIG.layout.vocab_sizes):
        assert tokens[:, :, k].max() == size - 1
    assert np.isfinite(logprobs).all()
    assert logprobs.max() <= 0


def test_top_1_is_the_most_probable_token_at_probability_one() -> None:
    policy, conditions = make_policy(), make_conditions(2)
    config = SamplingConfig(temperature=1.0, top_k=1)
    tokens, logprobs = Engine(policy, config).generate(
        conditions, samples_per_prompt=1, seeds=make_seeds(2, 1)
    )
    grid = torch.tensor(tokens).long()
    assert torch.equal(policy(grid, conditions).argmax(-1), grid)
    assert not logprobs.any()


def test_a_row_depends_on_its_condition_and_seed_alone() -> None:
    engine, P, G = Engine(make_policy(), PLAIN), 4, 3
    conditions, seeds = make_conditions(P), make_seeds(P, G)
    together, logprobs = engine.generate(conditions, samples_per_prompt=G, seeds=seeds)
    assert len({row.tobytes() for row in together}) == P * G
    for row in range(P * G):
        alone, own = engine.generate(
            conditions[row // G][None], samples_per_prompt=1, seeds=seeds[row : row + 1]
        )
        assert np.array_equal(alone[0], together[row])
        np.testing.assert_allclose(own[0], logprobs[row], rtol=0, atol=1e-5)
    backwards, _ = engine.generate(
        conditions.flip(0), samples_per_prompt=G, seeds=seeds[::-1].copy()
    )
    assert np.array_equal(backwards[::-1], together)


@pytest.mark.compiler
@pytest.mark.parametrize("config", DISTRIBUTIONS)
def test_backends_give_the_same_samples(config: SamplingConfig) -> None:
    policy, conditions, seeds = make_policy(), make_conditions(4), make_seeds(4, 8)
    (tokens, logprobs), (others, other_logprobs) = (
        Engine(policy, replace(config, backend=backend)).generate(
            conditions, samples_per_prompt=8, seeds=seeds
        )
        for backend in BACKENDS
    )
    assert np.array_equal(tokens, others)
    np.testing.assert_allclose(logprobs, other_logprobs, rtol=0, atol=1e-5)


def test_the_same_call_twice_gives_the_same_bits() -> None:
    engine = Engine(make_policy(), PLAIN)
    first, second = (
        engine.generate(make_conditions(2), samples_per_prompt=2, seeds=make_seeds(2, 2))
        for _ in range(2)
    )
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_samples_share_the_prefill_of_their_prompt() -> None:
    policy = make_policy()
    Engine(policy, PLAIN).generate(
        make_conditions(2), samples_per_prompt=6, seeds=make_seeds(2, 6), num_steps=1
    )
    assert policy.prefills == [(2, 3)]
    cache = policy.new_cache(2, 6, 4, ReferenceOps())
    assert cache.kv.prompt.shape[2] == 2
    assert cache.kv.own.shape[2] == 12


def test_fewer_steps_are_the_beginning_of_more() -> None:
    engine = Engine(make_policy(), PLAIN)
    conditions, seeds = make_conditions(2), make_seeds(2, 2)
    whole, _ = engine.generate(conditions, samples_per_prompt=2, seeds=seeds)
    part, _ = engine.generate(conditions, samples_per_prompt=2, seeds=seeds, num_steps=5)
    assert np.array_equal(part, whole[:, :5])


def test_new_weights_count_from_the_next_call() -> None:
    policy = make_policy()
    engine = Engine(policy, PLAIN)
    conditions, seeds = make_conditions(1), make_seeds(1, 4)
    engine.generate(conditions, samples_per_prompt=4, seeds=seeds)
    with torch.no_grad():
        policy.head.zero_()
    _, logprobs = engine.generate(conditions, samples_per_prompt=4, seeds=seeds)
    wanted = -np.log(np.array(CONFIG.layout.vocab_sizes, dtype=np.float32))
    np.testing.assert_allclose(logprobs, np.broadcast_to(wanted, logprobs.shape), atol=1e-6)


def test_frequencies_match_the_enumerated_distribution() -> None:
    config = MusicLMConfig(
        semantic_vocab=2,
        coarse_vocab=3,
        coarse_levels=1,
        codec_frames_per_step=1,
        num_steps=2,
        condition_levels=1,
        condition_vocab=2,
        width=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        depth_width=8,
        depth_layers=1,
        depth_heads=2,
    )
    policy, sampling, G = make_policy(config), SamplingConfig(temperature=0.8, top_k=2), 3000
    grids = torch.tensor(list(product(range(2), range(3), repeat=2))).view(-1, 2, 2)
    with torch.no_grad():
        logits = policy(grids, torch.zeros(len(grids), 1, dtype=torch.int64))
    cells = log_probs(logits, sampling).gather(-1, grids[..., None])[..., 0]
    exact = cells.double().sum((1, 2)).exp().numpy()
    assert exact.sum() == pytest.approx(1, abs=1e-6)
    tokens, _ = Engine(policy, sampling).generate(
        torch.zeros(1, 1, dtype=torch.int64), samples_per_prompt=G, seeds=make_seeds(1, G)
    )
    rows = [grids.flatten(1).tolist().index(row) for row in tokens.reshape(G, 4).tolist()]
    counts = np.bincount(rows, minlength=len(grids))
    possible = exact > 0
    assert not counts[~possible].any()
    wanted = exact[possible] / exact[possible].sum() * G
    assert stats.chisquare(counts[possible], wanted).pvalue > 0.01


def test_weights_that_are_not_finite_are_one_sentence() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.trunk.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        Engine(policy, PLAIN).generate(
            make_conditions(1), samples_per_prompt=1, seeds=make_seeds(1, 1)
        )


@pytest.mark.parametrize("num_steps", [0, 13])
def test_impossible_lengths_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be 1 to 12, got {num_steps}"):
        Engine(make_policy(), PLAIN).generate(
            make_conditions(1), samples_per_prompt=1, seeds=make_seeds(1, 1), num_steps=num_steps
        )


def test_seeds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts x 2 samples need as many seeds"):
        Engine(make_policy(), PLAIN).generate(
            make_conditions(2), samples_per_prompt=2, seeds=make_seeds(1, 2)
        )
