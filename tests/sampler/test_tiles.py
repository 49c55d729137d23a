"""Products of whole tiles of bfloat16: what is rounded, what is not, and what comes after."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.sampler.backends import make_ops
from musicrl.sampler.cpu import SMALL_WEIGHT, CpuOps
from musicrl.sampler.ops import Norm, feed_forward, norm_linear
from musicrl.sampler.sampling import SamplingConfig
from musicrl.sampler.tile_routine import tile_routine

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(tile_routine() is None, reason="no library multiplies bfloat16 tiles here"),
]


def make_tiles(num_rows: int) -> CpuOps:
    config = SamplingConfig(backend="cpu", precision="bfloat16")
    found = make_ops(config, num_rows=num_rows, device=torch.device("cpu"))
    assert isinstance(found, CpuOps)
    return found


def halves(x: Tensor) -> Tensor:
    """Rounded to bfloat16, as float64."""
    return x.bfloat16().double()


@pytest.mark.parametrize("rows", [1, 17, 37, 130])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 30), (33, 64), (384, 256)])
def test_what_enters_is_rounded_and_what_leaves_is_not(
    rows: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(rows)
    ops = make_tiles(rows)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) / math.sqrt(inputs)
    residual = 10 * torch.randn(rows, outputs)
    sums = halves(x) @ halves(weight).T
    gate, up = sums.chunk(2, dim=-1)
    pairs = [
        (ops.linear_add(x, weight, residual), residual + sums, 4e-6),
        (ops.linear_gelu(x, weight), F.gelu(sums), 4e-6),
        (ops.linear_swiglu(x, weight), F.silu(gate) * up, 4e-6),
        (ops.linear(x, weight), x.double() @ halves(weight).T, 1e-4),  # a small one: 16 bits of x
    ]
    for got, wanted, tolerance in pairs:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=2e-6)


def test_large_products_round_what_enters() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(40, 256), torch.randn(1 + SMALL_WEIGHT // 256, 256) / 16
    got = make_tiles(40).linear(x, weight).double()
    torch.testing.assert_close(got, halves(x) @ halves(weight).T, atol=4e-6, rtol=2e-6)


def test_the_same_product_twice_gives_the_same_bits_wherever_it_lies() -> None:
    torch.manual_seed(0)
    ops, weight, x = make_tiles(40), torch.randn(256, 96), torch.randn(41, 96)
    wanted = ops.linear_gelu(x[1:].clone(), weight)
    assert torch.equal(ops.linear_gelu(x[1:], weight), wanted)
    assert torch.equal(ops.linear_gelu(x[1:].clone(), weight), wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    ops, weight, x = make_tiles(20), torch.ones(8, 16), torch.zeros(20, 16)
    x[3, 5] = bad
    for got in (
        ops.linear(x, weight),
        ops.linear_add(x, weight, torch.zeros(20, 8)),
        ops.linear_gelu(x, -weight if bad < 0 else weight),
    ):
        assert not got[3].isfinite().any()
        assert got[:3].isfinite().all()
        assert got[4:].isfinite().all()


def test_activations_are_torchs_from_end_to_end() -> None:
    ops, line = make_tiles(401), torch.linspace(-100, 100, 401).bfloat16().float()[:, None]
    identity = torch.ones(1, 1)
    got = ops.linear_gelu(line, identity)
    torch.testing.assert_close(got, F.gelu(line), atol=1e-5, rtol=1e-6)
    both = ops.linear_swiglu(line, torch.ones(2, 1))
    torch.testing.assert_close(both, F.silu(line) * line, atol=1e-5, rtol=2e-6)


@pytest.mark.parametrize("has_offset", [True, False])
@pytest.mark.parametrize("is_gated", [True, False])
def test_one_call_gives_the_bits_of_several(has_offset: bool, is_gated: bool) -> None:
    torch.manual_seed(0)
    ops, x, weight = make_tiles(40), torch.randn(40, 96), torch.randn(96)
    norm = Norm(weight, torch.randn(96) if has_offset else None)
    up, down = torch.randn(320, 96) / 10, torch.randn(96, 160 if is_gated else 320) / 10
    found = ops.feed_forward(x, norm, up, down, is_gated=is_gated)
    assert torch.equal(found, feed_forward(ops, x, norm, up, down, is_gated=is_gated))
    for wide in (up, torch.randn(1 + SMALL_WEIGHT // 96, 96)):
        assert torch.equal(ops.norm_linear(x, norm, wide), norm_linear(ops, x, norm, wide))


def test_instructions_that_the_user_keeps_back_are_not_used() -> None:
    asked = "from musicrl.sampler.tile_routine import tile_routine; print(tile_routine())"
    limited = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", asked]
    done = subprocess.run(command, env=limited, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
