"""The cells of a step drawn at once: by hand, and the CPU backend against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicrl.policies.cache import DecodingCache
from musicrl.sampler.backends import make_ops
from musicrl.sampler.cache import PagedKV
from musicrl.sampler.draws import Draws
from musicrl.sampler.ops import Ops
from musicrl.sampler.reference import ReferenceOps
from musicrl.sampler.sampling import Precision, SamplingConfig, draw, guide, unpack, with_special

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.compiler)]


@pytest.fixture
def ops(request: pytest.FixtureRequest) -> Ops:
    return make_ops(SamplingConfig(backend=request.param), num_rows=4, device=torch.device("cpu"))


def test_the_special_token_is_certain_or_impossible() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = with_special(logits, torch.tensor([False, True]))
    assert found.tolist() == [[1.0, 2.0, -math.inf], [-math.inf, -math.inf, 0.0]]


@pytest.mark.parametrize("ops", BACKENDS, indirect=True)
def test_empty_cells_get_the_special_token_and_no_other_does(ops: Ops) -> None:
    logits = torch.tensor([[[0.0, 50.0], [math.nan, 0.0]], [[50.0, 0.0], [0.0, 50.0]]])
    is_empty = torch.tensor([[False, True], [False, False]])
    noise = torch.full((2, 2), 0.5, dtype=torch.float64)
    drawn = ops.draw_cells(logits, is_empty, noise, SamplingConfig(top_k=1))
    assert drawn.tokens.tolist() == [[1, 2], [0, 1]]
    assert not drawn.logprobs.any()
    assert drawn.kept is not None
    assert drawn.kept.tolist() == [[[0b010], [0b100]], [[0b001], [0b010]]]


@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(1, 70),
    streams=st.integers(1, 4),
    top_k=st.integers(0, 70),
    guidance=st.sampled_from([1.0, 3.0]),
    has_special=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
)
@settings(deadline=None, max_examples=150)
@pytest.mark.compiler
def test_cells_are_drawn_as_alone(
    seed: int,
    vocab: int,
    streams: int,
    top_k: int,
    guidance: float,
    has_special: bool,
    spread: float,
) -> None:
    """Every cell by itself, in the reference, and all of them in C."""
    rows, generator = 3, torch.Generator().manual_seed(seed)
    shape = ((1 if guidance == 1 else 2) * rows, streams, vocab)
    logits = (spread * torch.randn(shape, generator=generator)).round(decimals=1)  # with ties
    impossible = torch.rand(rows, streams, vocab - 1, generator=generator) < 0.2
    logits[:rows, :, 1:][impossible] = -torch.inf
    is_empty = torch.rand(rows, streams, generator=generator) < 0.3 if has_special else None
    uniform = torch.rand(streams, rows, generator=generator, dtype=torch.float64)
    config = SamplingConfig(top_k=top_k, guidance=guidance)
    native = make_ops(SamplingConfig(backend="cpu"), num_rows=rows, device=torch.device("cpu"))
    for ops in (ReferenceOps(), native):
        found = ops.draw_cells(logits, is_empty, uniform, config)
        for k in range(streams):
            alone = logits[:rows, k]
            if guidance != 1:
                alone = guide(alone, logits[rows:, k], guidance)
            if is_empty is not None:
                alone = with_special(alone, is_empty[:, k])
            wanted = draw(alone, uniform[k], config)
            assert torch.equal(found.tokens[:, k], wanted.tokens)
            torch.testing.assert_close(found.logprobs[:, k], wanted.logprobs, atol=2e-6, rtol=2e-6)
            assert (found.kept is None) == (wanted.kept is None)
            if found.kept is not None and wanted.kept is not None:
                assert torch.equal(found.kept[:, k], wanted.kept)


@pytest.mark.compiler
@pytest.mark.parametrize("vocab", [2048, 40_000])
def test_large_vocabularies_keep_the_k_best(vocab: int) -> None:
    """Above what short counters hold; the k-th best has neighbours that differ in the last bits."""
    generator = torch.Generator().manual_seed(vocab)
    logits = 1 + torch.randint(0, 3000, (2, 1, vocab), generator=generator) * 2.0**-23
    native = make_ops(SamplingConfig(backend="cpu"), num_rows=2, device=torch.device("cpu"))
    noise = torch.full((1, 2), 0.5, dtype=torch.float64)
    kept = native.draw_cells(logits, None, noise, SamplingConfig(top_k=250, temperature=1.0)).kept
    assert kept is not None
    least = logits.topk(250, dim=-1).values[..., -1:]
    assert torch.equal(unpack(kept, vocab), logits >= least)


@pytest.mark.compiler
def test_branches_are_mixed_before_the_heads_where_roundings_may_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 24, generator=generator) for n in (10, 3 * 7))
    noise = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    kv = PagedKV(num_layers=1, num_blocks=1, block_size=1, num_kv_heads=1, head_dim=2)
    found = []
    expected: dict[Precision, int] = {"float32": 10, "bfloat16": 5}
    for precision, rows in expected.items():
        config = SamplingConfig(backend="cpu", precision=precision, guidance=3.0, top_k=4)
        ops = make_ops(config, num_rows=10, device=torch.device("cpu"))
        draws = Draws(config, DecodingCache(ops, kv), noise)
        states = draws.guided(hidden)
        assert len(states) == rows
        tokens = draws.cells((states @ head.T).view(rows, 3, 7), None)
        assert torch.equal(tokens[:5], tokens[5:])
        found.append((tokens, draws.logprobs, draws.kept))
    exact, mixed = found
    assert torch.equal(exact[0], mixed[0])
    torch.testing.assert_close(exact[1], mixed[1], atol=1e-4, rtol=1e-5)
    assert exact[2] is not None
    assert mixed[2] is not None
    assert torch.equal(exact[2], mixed[2])
