"""The CPU backend against the reference: every operation, whole samples, and where it cannot be."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicrl.policies.blocks import rotations
from musicrl.sampler import native
from musicrl.sampler.cache import KVCache
from musicrl.sampler.ops import CpuOps, ReferenceOps, make_ops
from musicrl.sampler.sampling import SamplingConfig

pytestmark = pytest.mark.compiler
CPU = torch.device("cpu")
ON_CPU = SamplingConfig(backend="cpu")
REFERENCE = ReferenceOps()


@pytest.fixture(scope="module")
def ops() -> CpuOps:
    found = make_ops(ON_CPU, num_rows=6, device=CPU)
    assert isinstance(found, CpuOps)
    return found


@pytest.fixture
def unbuilt() -> Iterator[None]:
    """The kernels are looked for again, before and after."""
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def test_linears_agree(ops: CpuOps) -> None:
    torch.manual_seed(0)
    x, weight, residual = torch.randn(6, 48), torch.randn(80, 48), torch.randn(6, 80)
    pairs = [
        (ops.linear(x, weight), REFERENCE.linear(x, weight)),
        (ops.linear_gelu(x, weight), REFERENCE.linear_gelu(x, weight)),
        (ops.linear_add(x, weight, residual), REFERENCE.linear_add(x, weight, residual)),
    ]
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 11, 12])
def test_a_product_has_the_same_bits_in_any_batch(rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(40, 48), torch.randn(80, 48)
    for backend in (REFERENCE, make_ops(ON_CPU, num_rows=rows, device=CPU)):
        assert torch.equal(backend.linear(x[:rows], weight), backend.linear(x, weight)[:rows])


@pytest.mark.parametrize("width", [7, 48, 192])
def test_norms_agree(ops: CpuOps, width: int) -> None:
    torch.manual_seed(width)
    x, weight = 3 * torch.randn(6, width) + 5, torch.randn(width)
    got, wanted = ops.norm(x, weight), REFERENCE.norm(x, weight)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 6), (4, 2, 48), (3, 1, 10)])
@pytest.mark.parametrize("prompt_len", [0, 3])
def test_attention_appends_and_mixes_alike(
    threads: int, rotated: bool, heads: int, kv_heads: int, size: int, prompt_len: int
) -> None:
    torch.manual_seed(0)
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops = make_ops(ON_CPU, num_rows=6, device=CPU)
    finally:
        torch.set_num_threads(previous)
    caches = [
        KVCache(
            num_prompts=2,
            samples_per_prompt=3,
            num_layers=2,
            num_kv_heads=kv_heads,
            head_dim=size,
            prompt_len=prompt_len,
            num_steps=4,
        )
        for _ in range(2)
    ]
    prompt = torch.randn(2, 2, prompt_len, kv_heads, size)
    for cache in caches:
        cache.write_prompt(1, prompt[0], prompt[1])
    table = rotations(4, size)
    for position in range(4):
        qkv = torch.randn(6, (heads + 2 * kv_heads) * size)
        rotation = table[position] if rotated else None
        for cache in caches:
            cache.advance()
        got = ops.attend(qkv, caches[0], 1, rotation)
        wanted = REFERENCE.attend(qkv, caches[1], 1, rotation)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(caches[0].own, caches[1].own, atol=1e-6, rtol=1e-6)


@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(1, 70),
    top_k=st.integers(0, 70),
    temperature=st.sampled_from([0.1, 0.99, 3.0]),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
)
@settings(deadline=None, max_examples=200)
def test_draws_agree(
    ops: CpuOps, seed: int, vocab: int, top_k: int, temperature: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(6, vocab, generator=generator)).round(decimals=1)  # with ties
    logits[:, 1:][torch.rand(6, vocab - 1, generator=generator) < 0.2] = -torch.inf
    uniform = torch.rand(6, generator=generator, dtype=torch.float64)
    config = SamplingConfig(temperature=temperature, top_k=top_k)
    tokens, logprobs = ops.draw(logits, uniform, config)
    wanted, wanted_logprobs = REFERENCE.draw(logits, uniform, config)
    assert torch.equal(tokens, wanted)
    torch.testing.assert_close(logprobs, wanted_logprobs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("uniform", [2.0**-53, 1 - 2.0**-53])
def test_the_ends_of_the_line_draw_possible_tokens(ops: CpuOps, uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -80.0, 1.0, -torch.inf]] * 6)
    noise = torch.full((6,), uniform, dtype=torch.float64)
    tokens, _ = ops.draw(logits, noise, SamplingConfig(temperature=1.0))
    assert tokens.tolist() == ([1] if uniform < 0.5 else [3]) * 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_show(ops: CpuOps, bad: float) -> None:
    logits = torch.zeros(6, 9)
    logits[2, 4] = bad
    noise = torch.full((6,), 0.5, dtype=torch.float64)
    tokens, logprobs = ops.draw(logits, noise, SamplingConfig())
    assert tokens.min() >= 0
    assert tokens.max() < 9
    assert logprobs.isnan().tolist() == [False, False, True, False, False, False]


def test_frequencies_of_draws_match_the_reported_probabilities() -> None:
    from scipy import stats

    rows, vocab = 200_000, 12
    ops = make_ops(ON_CPU, num_rows=rows, device=CPU)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(vocab, generator=generator).expand(rows, vocab).contiguous()
    noise = torch.rand(rows, generator=generator, dtype=torch.float64)
    tokens, logprobs = ops.draw(logits, noise, SamplingConfig(temperature=0.8, top_k=7))
    counts = np.bincount(tokens.numpy(), minlength=vocab)
    drawn = counts > 0
    assert drawn.sum() == 7
    probabilities = np.zeros(vocab)
    probabilities[tokens.numpy()] = logprobs.exp().numpy()
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    expected = probabilities[drawn] / probabilities.sum() * rows
    assert stats.chisquare(counts[drawn], expected).pvalue > 1e-3


def test_a_kernel_refuses_what_it_cannot_read(ops: CpuOps) -> None:
    noise = torch.full((6,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dense torch\.float32, got torch\.float64"):
        ops.draw(torch.zeros(6, 4, dtype=torch.float64), noise, SamplingConfig())
    with pytest.raises(ValueError, match="dense"):
        ops.draw(torch.zeros(4, 6).T, noise, SamplingConfig())


def test_bfloat16_rounds_products_and_nothing_else() -> None:
    torch.manual_seed(0)
    config = SamplingConfig(backend="cpu", precision="bfloat16")
    ops = make_ops(config, num_rows=6, device=CPU)
    x, weight, residual = torch.randn(6, 48), torch.randn(80, 48), torch.randn(6, 80)
    rounded = x.bfloat16().float() @ weight.bfloat16().float().T
    got = ops.linear(x, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, rounded, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(got, REFERENCE.linear(x, weight), atol=1e-4)
    large = 1000 * residual
    torch.testing.assert_close(
        ops.linear_add(x, weight, large) - large, rounded, atol=3e-2, rtol=1e-2
    )
    torch.testing.assert_close(
        ops.logits(x, weight), REFERENCE.logits(x, weight), atol=2e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="precision bfloat16 needs backend cpu, got reference"):
        SamplingConfig(backend="reference", precision="bfloat16")
    with pytest.raises(ValueError, match="backend cpu cannot sample on meta"):
        make_ops(SamplingConfig(precision="bfloat16"), num_rows=1, device=torch.device("meta"))


def test_kernels_are_built_once(tmp_path: Path) -> None:
    first = native.build(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert native.build(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_without_a_compiler_auto_is_the_reference_and_says_so(
    unbuilt: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert isinstance(make_ops(SamplingConfig(), num_rows=1, device=CPU), ReferenceOps)
    assert [record.getMessage() for record in caplog.records] == [
        "sampling without C kernels, which is slower: there is no C compiler no-such-compiler (set CC to name one)"
    ]
    with pytest.raises(ValueError, match="backend cpu needs a C compiler"):
        make_ops(ON_CPU, num_rows=1, device=CPU)


def test_source_that_does_not_compile_is_named(
    unbuilt: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "kernels.c"
    broken.write_text("int f( { return 1; }\n")
    monkeypatch.setattr(native, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING):
        assert native.kernels() is None
    assert "kernels.c does not compile" in caplog.text
    assert not list((tmp_path / "cache" / "musicrl").iterdir())


def test_the_backend_of_another_device_is_the_reference(ops: CpuOps) -> None:
    assert isinstance(
        make_ops(SamplingConfig(), num_rows=1, device=torch.device("meta")), ReferenceOps
    )
    with pytest.raises(ValueError, match="backend cpu cannot sample on meta"):
        make_ops(ON_CPU, num_rows=1, device=torch.device("meta"))


def test_weights_without_onednn_go_through_torch(
    ops: CpuOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(6, 5), torch.randn(4, 5)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert torch.equal(ops.linear(x, weight), REFERENCE.linear(x, weight))
    assert torch.equal(ops.linear_gelu(x, weight), REFERENCE.linear_gelu(x, weight))
