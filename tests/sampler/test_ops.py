"""The CPU backend against the reference: every operation, whole samples, and where it cannot be."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from musicrl.policies.blocks import rotations
from musicrl.sampler import cpu, native
from musicrl.sampler.backends import make_ops
from musicrl.sampler.cache import PagedKV, Rows
from musicrl.sampler.cpu import FEW_ROWS, CpuOps
from musicrl.sampler.randomness import noise_grid
from musicrl.sampler.reference import ReferenceOps
from musicrl.sampler.sampling import Backend, Precision, SamplingConfig, guide, unpack
from musicrl.sampler.tile_routine import has_bfloat16_products, tile_routine

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
        (ops.linear_swiglu(x, 20 * weight), REFERENCE.linear_swiglu(x, 20 * weight)),
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


def make_cache(by_head: bool, dtype: torch.dtype, kv_heads: int, size: int, page: int) -> PagedKV:
    return PagedKV(
        num_layers=2,
        num_blocks=12,
        block_size=page,
        num_kv_heads=kv_heads,
        head_dim=size,
        dtype=dtype,
        by_head=by_head,
    )


def copy_of(cache: PagedKV, *, by_head: bool) -> PagedKV:
    """The same numbers in float32, in the other order in memory."""
    kv_heads, size, page = cache.num_kv_heads, cache.head_dim, cache.block_size
    copy = make_cache(by_head, torch.float32, kv_heads, size, page)
    copy.pages.copy_(cache.pages)
    return copy


@pytest.mark.parametrize(("rows", "width"), [(1, 7), (6, 48), (40, 192)])
def test_root_mean_square_norms_agree(ops: CpuOps, rows: int, width: int) -> None:
    torch.manual_seed(width)
    x, weight = 3 * torch.randn(rows, width) + 5, torch.randn(width)
    got, wanted = ops.rms_norm(x, weight), REFERENCE.rms_norm(x, weight)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("rows", "width"), [(1, 7), (6, 48), (70, 192)])
@pytest.mark.parametrize("has_offset", [True, False])
def test_norms_of_rounded_products_are_not_rounded(rows: int, width: int, has_offset: bool) -> None:
    torch.manual_seed(width)
    rounding = make_ops(replace(ON_CPU, precision="bfloat16"), num_rows=rows, device=CPU)
    x, weight = 3 * torch.randn(rows, width) + 5, torch.randn(width)
    offset = torch.randn(width) if has_offset else None
    got, wanted = rounding.norm(x, weight, offset), REFERENCE.norm(x, weight, offset)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 4, 6), (4, 2, 48), (3, 1, 10), (2, 1, 64), (2, 2, 512)]
)
@pytest.mark.parametrize("page", [2, 3, 16, 37])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attention_appends_and_mixes_alike(
    threads: int,
    rotated: bool,
    heads: int,
    kv_heads: int,
    size: int,
    page: int,
    precision: Precision,
) -> None:
    """Rows of other lengths in scattered blocks, some of them shared."""
    torch.manual_seed(0)
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops = make_ops(SamplingConfig(backend="cpu", precision=precision), num_rows=3, device=CPU)
    finally:
        torch.set_num_threads(previous)
    cache = make_cache(True, ops.kv_dtype, kv_heads, size, page)
    cache.data.normal_()
    plain = copy_of(cache, by_head=False)
    lens = [2 * page + 1, 2 * page, 1 + page // 2]
    rows = Rows(
        tables=torch.tensor([[5, 2, 7], [5, 9, 0], [11, 0, 0]], dtype=torch.int32),
        lens=torch.tensor(lens, dtype=torch.int32),
        slots=torch.zeros(3, dtype=torch.int64),
    )
    rotation = rotations(2 * page + 1, size) if rotated else None
    qkv = torch.randn(3, (heads + 2 * kv_heads) * size)
    got = ops.attend(qkv, cache, 1, rows, rotation)
    wanted = REFERENCE.attend(qkv, plain, 1, rows, rotation)
    exact = precision == "float32"
    atol, rtol = (1e-6, 1e-5) if exact else (2e-2, 2e-2)
    torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)
    kept = cache.pages.float()
    if exact:
        torch.testing.assert_close(kept, plain.pages, atol=1e-6, rtol=1e-6)
    else:  # rounded to even, as torch rounds
        assert torch.equal(kept, plain.pages.bfloat16().float())
    again = ops.attend_cached(qkv[:, : heads * size].contiguous(), cache, 1, rows)
    wanted = REFERENCE.attend_cached(qkv[:, : heads * size], copy_of(cache, by_head=False), 1, rows)
    torch.testing.assert_close(again, wanted, atol=1e-5, rtol=1e-5)


def test_attention_over_copies_is_what_the_reference_does() -> None:
    torch.manual_seed(0)
    heads, kv_heads, size, page = 4, 2, 6, 3
    cache = make_cache(False, torch.float32, kv_heads, size, page)
    cache.data.normal_()
    rows = Rows(
        tables=torch.tensor([[4, 1], [6, 0]], dtype=torch.int32),
        lens=torch.tensor([5, 2], dtype=torch.int32),
        slots=torch.zeros(2, dtype=torch.int64),
    )
    query = torch.randn(2, heads * size)
    got = REFERENCE.attend_cached(query, cache, 1, rows).view(2, heads, size)
    for row, blocks, length in ((0, [4, 1], 5), (1, [6], 2)):
        keys, values = (part[blocks].flatten(0, 1)[:length] for part in cache.pages[1])
        for head in range(heads):
            asked = query[row].view(heads, size)[head]
            weights = (keys[:, head // 2] @ asked / size**0.5).softmax(0)
            torch.testing.assert_close(got[row, head], weights @ values[:, head // 2])


def test_not_finite_numbers_stay_so_in_a_rounded_cache() -> None:
    ops = make_ops(SamplingConfig(backend="cpu", precision="bfloat16"), num_rows=1, device=CPU)
    cache = make_cache(True, torch.bfloat16, 1, 2, 4)
    rows = Rows(
        tables=torch.tensor([[3]], dtype=torch.int32),
        lens=torch.tensor([1], dtype=torch.int32),
        slots=torch.zeros(1, dtype=torch.int64),
    )
    nan_bits = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    qkv = torch.cat([torch.tensor([1.0, 1.0, math.inf, -math.inf, 3.4e38]), nan_bits])[None]
    out = ops.attend(qkv, cache, 0, rows, None)
    key, value = cache.pages[0, :, 3, 0, 0]
    assert key.tolist() == [math.inf, -math.inf]
    assert value[0] == math.inf
    assert value[1].isnan()
    assert out.isnan().any()


def test_pages_of_another_order_are_refused(ops: CpuOps) -> None:
    cache = make_cache(False, torch.float32, 1, 2, 4)
    rows = Rows(
        torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32), torch.zeros(1)
    )
    with pytest.raises(AssertionError, match="heads lie together"):
        ops.attend_cached(torch.zeros(1, 2), cache, 0, rows)


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
    found, wanted = ops.draw(logits, uniform, config), REFERENCE.draw(logits, uniform, config)
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, atol=2e-6, rtol=2e-6)
    if top_k == 0:
        assert found.kept is None
        assert wanted.kept is None
    else:
        assert found.kept is not None
        assert wanted.kept is not None
        assert torch.equal(found.kept, wanted.kept)
        assert unpack(found.kept, vocab).gather(1, found.tokens[:, None]).all()


@pytest.mark.parametrize("uniform", [2.0**-53, 1 - 2.0**-53])
def test_the_ends_of_the_line_draw_possible_tokens(ops: CpuOps, uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -80.0, 1.0, -torch.inf]] * 6)
    noise = torch.full((6,), uniform, dtype=torch.float64)
    drawn = ops.draw(logits, noise, SamplingConfig(temperature=1.0))
    assert drawn.tokens.tolist() == ([1] if uniform < 0.5 else [3]) * 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_show(ops: CpuOps, bad: float) -> None:
    logits = torch.zeros(6, 9)
    logits[2, 4] = bad
    noise = torch.full((6,), 0.5, dtype=torch.float64)
    tokens, logprobs, _ = ops.draw(logits, noise, SamplingConfig())
    assert tokens.min() >= 0
    assert tokens.max() < 9
    assert logprobs.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("top_k", [0, 7])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_frequencies_of_a_million_draws_match_the_reported_probabilities(
    top_k: int, guidance: float, backend: Backend
) -> None:
    draws, vocab = 1_000_000, 12
    config = SamplingConfig(temperature=0.8, top_k=top_k, backend=backend)
    backend_ops = make_ops(config, num_rows=draws, device=CPU)
    generator = torch.Generator().manual_seed(3)
    conditioned, null = torch.randn(2, vocab, generator=generator)
    logits = guide(conditioned, null, guidance).expand(draws, vocab).contiguous()
    noise = noise_grid(np.arange(draws, dtype=np.uint64), 1, 1)[0, 0]
    drawn = backend_ops.draw(logits, torch.from_numpy(noise), config)
    counts = np.bincount(drawn.tokens.numpy(), minlength=vocab)
    possible = counts > 0
    assert possible.sum() == (top_k or vocab)
    probabilities = np.zeros(vocab)
    probabilities[drawn.tokens.numpy()] = drawn.logprobs.double().exp().numpy()
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    expected = probabilities[possible] / probabilities.sum() * draws
    assert stats.chisquare(counts[possible], expected).pvalue > 1e-3


def test_a_kernel_refuses_what_it_cannot_read(ops: CpuOps) -> None:
    noise = torch.full((6,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dense torch\.float32, got torch\.float64"):
        ops.draw(torch.zeros(6, 4, dtype=torch.float64), noise, SamplingConfig())
    with pytest.raises(ValueError, match="dense"):
        ops.draw(torch.zeros(4, 6).T, noise, SamplingConfig())


@pytest.mark.parametrize("num_rows", [6, 15, 40])
@pytest.mark.parametrize("outputs", [80, 38])
@pytest.mark.parametrize("has_tiles", [True, False])
def test_bfloat16_rounds_products_and_nothing_else(
    num_rows: int, outputs: int, has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whole tiles where a library has them; else in C for few rows, which rounds the weights
    alone, and by a library for more where it can."""
    if not has_tiles:
        monkeypatch.setattr(cpu, "tile_routine", lambda: None)
    elif tile_routine() is None:
        pytest.skip("no library multiplies bfloat16 tiles here")
    torch.manual_seed(0)
    config = SamplingConfig(backend="cpu", precision="bfloat16")
    ops = make_ops(config, num_rows=num_rows, device=CPU)
    x, weight = torch.randn(15, 48), torch.randn(outputs, 48)
    residual = torch.randn(15, outputs)
    is_c = num_rows <= FEW_ROWS or not has_bfloat16_products()
    inputs = x if is_c or has_tiles else x.bfloat16().float()
    got = ops.linear(x, weight)
    assert got.dtype == torch.float32
    wanted = inputs @ weight.bfloat16().float().T
    torch.testing.assert_close(got, wanted, atol=1e-2, rtol=1e-2)
    is_c &= not has_tiles
    rounded = (x if is_c else x.bfloat16().float()) @ weight.bfloat16().float().T
    assert not torch.allclose(got, REFERENCE.linear(x, weight), atol=1e-4)
    large = 1000 * residual
    torch.testing.assert_close(
        ops.linear_add(x, weight, large) - large, rounded, atol=3e-2, rtol=1e-2
    )
    torch.testing.assert_close(
        ops.logits(x, weight), REFERENCE.logits(x, weight), atol=2e-5, rtol=1e-5
    )
    gate, up = rounded.chunk(2, dim=-1)
    torch.testing.assert_close(
        ops.linear_swiglu(x, weight).float(), F.silu(gate) * up, atol=0.1, rtol=2e-2
    )
    torch.testing.assert_close(
        ops.linear_gelu(x, weight).float(), F.gelu(rounded), atol=5e-2, rtol=2e-2
    )


def test_bfloat16_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(
        ValueError, match="precision bfloat16 needs backend cpu or flash, got reference"
    ):
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
    monkeypatch.setattr(native, "SOURCES", (broken,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING):
        assert native.kernels() is None
    assert "the kernels do not compile" in caplog.text
    assert "kernels.c:1" in caplog.text
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
