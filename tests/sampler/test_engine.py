"""The engine: exact log-probabilities, shared prompts, independence of batch, order and room."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from musicrl.policies.cache import DecodingCache
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.sampler.cache import Span
from musicrl.sampler.engine import Engine, Samples
from musicrl.sampler.randomness import sample_seed, uniforms
from musicrl.sampler.sampling import Backend, SamplingConfig, draw, grid_log_probs, guide

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
    SamplingConfig(temperature=0.99, guidance=3.0),
    SamplingConfig(temperature=0.9, guidance=0.5, top_k=5),
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

    def prefill(
        self, conditions: Tensor, history: Tensor, slots: Tensor, span: Span, cache: DecodingCache
    ) -> None:
        self.prefills.append((*conditions.shape, history.shape[1]))
        super().prefill(conditions, history, slots, span, cache)


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


def tolerance(config: SamplingConfig) -> float:
    """Guidance multiplies the roundings of both logits: g x (one) - (g - 1) x (the other)."""
    return 1e-5 * max(1.0, 2 * config.guidance - 1)


@pytest.mark.parametrize("config", SETTINGS)
def test_logprobs_equal_the_teacher_forced_ones(config: SamplingConfig) -> None:
    policy, P, G = make_policy(), 3, 5
    conditions = make_conditions(P)
    samples = Engine(policy, config).generate(
        conditions, samples_per_prompt=G, seeds=make_seeds(P, G)
    )
    grid = torch.tensor(samples.tokens).long()
    with torch.no_grad():
        cells = grid_log_probs(policy, grid, conditions.repeat_interleave(G, dim=0), config)
    wanted = cells.gather(-1, grid[..., None])[..., 0]
    np.testing.assert_allclose(samples.logprobs, wanted.numpy(), rtol=0, atol=tolerance(config))


@pytest.mark.parametrize("config", SETTINGS)
def test_tokens_stay_in_the_vocabulary_of_their_stream(config: SamplingConfig) -> None:
    samples = Engine(make_policy(), config).generate(
        make_conditions(4), samples_per_prompt=8, seeds=make_seeds(4, 8)
    )
    tokens, logprobs = samples.tokens, samples.logprobs
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
    samples = Engine(policy, config).generate(
        conditions, samples_per_prompt=1, seeds=make_seeds(2, 1)
    )
    grid = torch.tensor(samples.tokens).long()
    assert torch.equal(policy(grid, conditions).argmax(-1), grid)
    assert not samples.logprobs.any()


def test_a_row_depends_on_its_condition_and_seed_alone() -> None:
    engine, P, G = Engine(make_policy(), PLAIN), 4, 3
    conditions, seeds = make_conditions(P), make_seeds(P, G)
    together = engine.generate(conditions, samples_per_prompt=G, seeds=seeds)
    assert len({row.tobytes() for row in together.tokens}) == P * G
    for row in range(P * G):
        alone = engine.generate(
            conditions[row // G][None], samples_per_prompt=1, seeds=seeds[row : row + 1]
        )
        assert np.array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[row], rtol=0, atol=1e-5)
    backwards = engine.generate(conditions.flip(0), samples_per_prompt=G, seeds=seeds[::-1].copy())
    assert np.array_equal(backwards.tokens[::-1], together.tokens)


def assert_same(found: Samples, wanted: Samples, config: SamplingConfig = PLAIN) -> None:
    assert np.array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, rtol=0, atol=tolerance(config))
    assert (found.kept is None) == (wanted.kept is None)
    if found.kept is not None and wanted.kept is not None:
        assert np.array_equal(found.kept, wanted.kept)


@pytest.mark.compiler
@pytest.mark.parametrize("config", DISTRIBUTIONS)
def test_backends_give_the_same_samples(config: SamplingConfig) -> None:
    policy, conditions, seeds = make_policy(), make_conditions(4), make_seeds(4, 8)
    first, second = (
        Engine(policy, replace(config, backend=backend)).generate(
            conditions, samples_per_prompt=8, seeds=seeds
        )
        for backend in BACKENDS
    )
    assert_same(first, second, config)


def test_the_same_call_twice_gives_the_same_bits() -> None:
    engine = Engine(make_policy(), PLAIN)
    first, second = (
        engine.generate(make_conditions(2), samples_per_prompt=2, seeds=make_seeds(2, 2))
        for _ in range(2)
    )
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.logprobs, second.logprobs)


def test_samples_share_the_prefill_of_their_prompt() -> None:
    policy = make_policy()
    Engine(policy, PLAIN).generate(
        make_conditions(2), samples_per_prompt=6, seeds=make_seeds(2, 6), num_steps=1
    )
    assert policy.prefills == [(2, 3, 0)]
    policy.prefills.clear()
    Engine(policy, replace(PLAIN, guidance=2.0)).generate(
        make_conditions(2), samples_per_prompt=6, seeds=make_seeds(2, 6), num_steps=1
    )
    assert policy.prefills == [(3, 3, 0)]  # the null prompt once


@pytest.mark.parametrize("config", SETTINGS)
def test_little_room_changes_no_sample(config: SamplingConfig) -> None:
    """Twelve samples where three and a half fit: they wait, give way, and are taken up again."""
    policy, conditions, seeds = make_policy(), make_conditions(4), make_seeds(4, 3)
    branches = 1 if config.guidance == 1 else 2
    engine = Engine(policy, replace(config, block_size=2, num_blocks=28 * branches))
    found = engine.generate(conditions, samples_per_prompt=3, seeds=seeds)
    assert engine.num_preempted > 3
    assert any(history > 0 for *_, history in policy.prefills)
    engine.check_integrity()
    wanted = Engine(policy, config).generate(conditions, samples_per_prompt=3, seeds=seeds)
    assert_same(found, wanted, config)


def test_few_rows_change_no_sample() -> None:
    policy, conditions, seeds = make_policy(), make_conditions(3), make_seeds(3, 3)
    found = Engine(policy, replace(PLAIN, max_rows=2)).generate(
        conditions, samples_per_prompt=3, seeds=seeds
    )
    assert_same(
        found, Engine(policy, PLAIN).generate(conditions, samples_per_prompt=3, seeds=seeds)
    )


def naive(
    policy: MusicLM, prompt: Tensor, seed: int, steps: int, config: SamplingConfig
) -> Samples:
    """One sample by whole forward passes, a cell at a time."""
    K = policy.layout.num_streams
    grid = torch.zeros(1, steps, K, dtype=torch.int64)
    logprobs = np.zeros((1, steps, K), np.float32)
    for s in range(steps):
        for k, size in enumerate(policy.layout.vocab_sizes):
            logits = policy(grid, prompt[None])[:, s, k, :size]
            if config.guidance != 1:
                null = policy(grid, torch.full_like(prompt[None], -1))[:, s, k, :size]
                logits = guide(logits, null, config.guidance)
            noise = uniforms(np.array([seed], np.uint64), s, k)
            drawn = draw(logits, torch.from_numpy(noise), config)
            grid[0, s, k], logprobs[0, s, k] = drawn.tokens[0], drawn.logprobs[0]
    return Samples(tokens=grid.numpy().astype(np.int16), logprobs=logprobs, kept=None)


@given(
    data=st.data(),
    num_blocks=st.integers(14, 40),
    block_size=st.sampled_from([1, 2, 3, 16]),
    max_rows=st.integers(2, 6),
    guidance=st.sampled_from([1.0, 2.0]),
    backend=st.sampled_from(BACKENDS),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.compiler
def test_samples_that_come_and_go_equal_the_naive_loop(
    data: st.DataObject,
    num_blocks: int,
    block_size: int,
    max_rows: int,
    guidance: float,
    backend: Backend,
) -> None:
    """Prompts, lengths, arrivals and room are random; a sample is what it is alone."""
    policy = make_policy(replace(CONFIG, num_steps=6, num_layers=2))
    config = SamplingConfig(
        backend=backend,
        guidance=guidance,
        num_blocks=num_blocks * 2,
        block_size=block_size,
        max_rows=max_rows,
    )
    engine = Engine(policy, config)
    prompts = make_conditions(3)
    asked: dict[int, tuple[int, int, int]] = {}
    found: dict[int, Samples] = {}
    for seed in range(data.draw(st.integers(1, 7), label="samples")):
        prompt = data.draw(st.integers(0, 2), label="prompt")
        steps = data.draw(st.integers(1, 6), label="steps")
        number = engine.submit(prompts[prompt], seed=seed, num_steps=steps)
        asked[number] = (prompt, seed, steps)
        for _ in range(data.draw(st.integers(0, 3), label="rounds")):
            found |= engine.step(max_steps=data.draw(st.integers(1, 4), label="max_steps"))
            engine.check_integrity()
    while not engine.is_idle:
        found |= engine.step()
        engine.check_integrity()
    assert found.keys() == asked.keys()
    with torch.no_grad():
        for number, (prompt, seed, steps) in asked.items():
            assert_same(found[number], naive(policy, prompts[prompt], seed, steps, config), config)


def test_fewer_steps_are_the_beginning_of_more() -> None:
    engine = Engine(make_policy(), PLAIN)
    conditions, seeds = make_conditions(2), make_seeds(2, 2)
    whole = engine.generate(conditions, samples_per_prompt=2, seeds=seeds)
    part = engine.generate(conditions, samples_per_prompt=2, seeds=seeds, num_steps=5)
    assert np.array_equal(part.tokens, whole.tokens[:, :5])


def test_new_weights_count_from_the_next_call() -> None:
    policy = make_policy()
    engine = Engine(policy, PLAIN)
    conditions, seeds = make_conditions(1), make_seeds(1, 4)
    engine.generate(conditions, samples_per_prompt=4, seeds=seeds)
    with torch.no_grad():
        policy.head.zero_()
    logprobs = engine.generate(conditions, samples_per_prompt=4, seeds=seeds).logprobs
    wanted = -np.log(np.array(CONFIG.layout.vocab_sizes, dtype=np.float32))
    np.testing.assert_allclose(logprobs, np.broadcast_to(wanted, logprobs.shape), atol=1e-6)


@pytest.mark.parametrize(("top_k", "guidance"), [(0, 1.0), (2, 1.0), (0, 2.5), (2, 2.5)])
def test_frequencies_match_the_enumerated_distribution(top_k: int, guidance: float) -> None:
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
    policy, G = make_policy(config), 3000
    sampling = SamplingConfig(temperature=0.8, top_k=top_k, guidance=guidance)
    grids = torch.tensor(list(product(range(2), range(3), repeat=2))).view(-1, 2, 2)
    with torch.no_grad():
        cells = grid_log_probs(policy, grids, torch.zeros_like(grids[:, :1, 0]), sampling)
    cells = cells.gather(-1, grids[..., None])[..., 0]
    exact = cells.double().sum((1, 2)).exp().numpy()
    assert exact.sum() == pytest.approx(1, abs=1e-6)
    samples = Engine(policy, sampling).generate(
        torch.zeros(1, 1, dtype=torch.int64), samples_per_prompt=G, seeds=make_seeds(1, G)
    )
    rows = [grids.flatten(1).tolist().index(row) for row in samples.tokens.reshape(G, 4).tolist()]
    counts = np.bincount(rows, minlength=len(grids))
    possible = exact > 0
    assert not counts[~possible].any()
    wanted = exact * G / exact.sum()
    common = wanted > 5  # the others in one cell
    pooled = [(counts[common], wanted[common]), (counts[~common].sum(), wanted[~common].sum())]
    found, expected = (np.hstack(side) for side in zip(*pooled, strict=True))
    assert not found[expected == 0].any()
    assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > 0.01


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


def test_a_cut_returns_the_set_that_was_left() -> None:
    policy, sampling = make_policy(), SamplingConfig(temperature=0.9, top_k=4)
    samples = Engine(policy, sampling).generate(
        make_conditions(2), samples_per_prompt=2, seeds=make_seeds(2, 2)
    )
    grid = torch.tensor(samples.tokens).long()
    assert samples.kept is not None
    kept = torch.from_numpy(samples.kept)
    with torch.no_grad():
        asked = make_conditions(2).repeat_interleave(2, dim=0)
        wanted = grid_log_probs(policy, grid, asked, sampling)
        for parameter in policy.parameters():  # another policy, whose own four best are others
            parameter.add_(0.05 * torch.randn_like(parameter))
        replayed = grid_log_probs(policy, grid, asked, sampling, kept)
        own = grid_log_probs(policy, grid, asked, sampling)
    assert torch.equal(wanted > -torch.inf, replayed > -torch.inf)
    assert not torch.equal(wanted > -torch.inf, own > -torch.inf)
    assert torch.isfinite(replayed.gather(-1, grid[..., None])).all()


def test_after_a_fault_the_engine_starts_anew() -> None:
    policy = make_policy()
    engine = Engine(policy, replace(PLAIN, backend="reference"))
    conditions, seeds = make_conditions(1), make_seeds(1, 2)
    wanted = engine.generate(conditions, samples_per_prompt=2, seeds=seeds)
    with torch.no_grad():
        policy.trunk.start[0] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        engine.generate(conditions, samples_per_prompt=2, seeds=seeds)
    with torch.no_grad():
        policy.trunk.start.copy_(make_policy().trunk.start)
    assert_same(engine.generate(conditions, samples_per_prompt=2, seeds=seeds), wanted)


def test_what_can_never_fit_is_refused() -> None:
    engine = Engine(make_policy(), SamplingConfig(num_blocks=2, block_size=4))
    with pytest.raises(ValueError, match="12 steps needs 4 blocks of 4 positions"):
        engine.generate(make_conditions(1), samples_per_prompt=1, seeds=make_seeds(1, 1))
    with pytest.raises(ValueError, match="num_steps must be 1 to 12, got 13"):
        engine.submit(make_conditions(1)[0], seed=0, num_steps=13)


def test_a_batch_waits_for_samples_under_way() -> None:
    engine = Engine(make_policy(), PLAIN)
    number = engine.submit(make_conditions(1)[0], seed=3)
    with pytest.raises(ValueError, match="other samples are under way"):
        engine.generate(make_conditions(1), samples_per_prompt=1, seeds=make_seeds(1, 1))
    found: dict[int, Samples] = {}
    while not engine.is_idle:
        found |= engine.step()
    assert found.keys() == {number}
    assert engine.step() == {}
