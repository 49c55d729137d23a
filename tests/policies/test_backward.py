"""Gradients that are written out, against autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.policies.backward import attend_in_double, rms_norm, swiglu
from musicrl.policies.blocks import attend_causally

EPS = 1e-5


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, off: float = 1e-4
) -> None:
    """Equal bits forward, equal gradients but for rounding."""
    inputs = tuple(x.requires_grad_() for x in inputs)
    found, wanted = ours(*inputs), theirs(*inputs)
    assert torch.equal(found, wanted)
    outer = numbers(*found.shape, seed=1)
    pairs = (torch.autograd.grad(out, inputs, outer) for out in (found, wanted))
    for own, other in zip(*pairs, strict=True):
        assert own.abs().max() > 0.1
        torch.testing.assert_close(own, other, atol=off, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 700])  # one chunk, and three of which the last is short
def test_root_mean_square_norm(rows: int) -> None:
    check(
        lambda x, weight: rms_norm(x, weight, EPS),
        lambda x, weight: F.rms_norm(x, weight.shape, weight, eps=EPS),
        *(numbers(rows, 384), numbers(384, seed=2)),
    )


@pytest.mark.parametrize("rows", [1, 700])
def test_swiglu(rows: int) -> None:
    def plain(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up

    check(swiglu, plain, numbers(rows, 512))


@pytest.mark.parametrize(("steps", "size"), [(1, 64), (31, 48), (130, 64), (9, 6)])
def test_causal_attention_has_the_bits_of_float64_sums(steps: int, size: int) -> None:
    """Of inputs that lie as the learner's do: as parts of one tensor, heads inside steps."""
    parts = (x.transpose(1, 2) for x in numbers(2, steps, 9, size).split(3, dim=2))
    heads = tuple(x.detach() for x in parts)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = query.double(), key.double(), value.double()
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).float()

    if steps > 1:
        check(attend_in_double, plain, *heads)
    else:  # a softmax of one number has no gradient
        assert torch.equal(attend_in_double(*heads), plain(*heads))


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_attention_of_learner_and_oracle_agree(kv_heads: int) -> None:
    query = numbers(2, 20, 3, 32)
    key, value = numbers(2, 2, 20, kv_heads, 32, seed=3)
    ours = attend_causally(query, key, value)
    assert torch.equal(ours, attend_causally(query, key, value, in_torch=True))
    assert not torch.equal(ours, value.expand_as(ours))
