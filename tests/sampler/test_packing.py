"""Weights as the C kernels read them: the numbers of a slow twin in torch, in buffers of before."""

from __future__ import annotations

from ctypes import CDLL

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.sampler.native import kernels
from musicrl.sampler.packing import (
    COLUMNS,
    GATED_TILES,
    HALVES,
    PAIRS,
    TILES,
    PackedWeights,
    packed,
)
from musicrl.sampler.tiles import PANEL

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def library() -> CDLL:
    found = kernels()
    assert found is not None
    return found


def panels(weight: Tensor, rows: int) -> Tensor:
    """[O, I] to [P, rows, I], zeros past the last output."""
    inputs = weight.shape[1]
    return F.pad(weight, (0, 0, 0, -len(weight) % rows)).view(-1, rows, inputs)


def twin(weight: Tensor, order: int, lanes: int) -> Tensor:
    """The words of `packing.c`."""
    if order == COLUMNS:
        return panels(weight, 2 * lanes).transpose(1, 2).contiguous().view(torch.int32)
    short = weight.bfloat16()
    if order == PAIRS:
        found = panels(short, 2 * lanes).unflatten(1, (2, lanes)).permute(0, 3, 2, 1)
    elif order == HALVES:
        parts = torch.stack([panels(half, lanes) for half in short.chunk(2)])
        found = parts.permute(1, 3, 2, 0)
    else:
        wide = F.pad(short, (0, -weight.shape[1] % PANEL))
        halves = wide.chunk(2) if order == GATED_TILES else (wide,)
        rows = torch.cat([panels(half, PANEL) for half in halves], dim=1)
        found = rows.view(*rows.shape[:2], -1, 2).transpose(1, 2)
    words: Tensor = found.contiguous().view(torch.int32)
    return words


@pytest.mark.parametrize("order", [COLUMNS, PAIRS, HALVES, TILES, GATED_TILES])
@pytest.mark.parametrize("outputs", [2, 62, 64, 130, 192])
@pytest.mark.parametrize("inputs", [1, 30, 64, 65, 200])
def test_words_are_those_of_torch(library: CDLL, order: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs + inputs)
    weight = torch.randn(outputs, inputs)
    lanes = library.product_lanes()
    wanted = twin(weight, order, lanes).flatten()
    for threads in (1, 2):
        guarded = torch.full((len(wanted) + 8,), 7, dtype=torch.int32)
        packed(library, weight, order, threads, out=guarded[:-8])
        assert torch.equal(guarded[:-8], wanted)
        assert (guarded[-8:] == 7).all()


def test_rounding_is_to_even_and_keeps_what_is_not_finite(library: CDLL) -> None:
    bits = np.arange(2**16, dtype=np.uint32) << 16
    ends = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    numbers = torch.from_numpy((bits[:, None] | ends).view(np.float32).reshape(-1, PANEL))
    found = packed(library, numbers, TILES, 2).view(torch.bfloat16)
    got = found.view(-1, PANEL // 2, PANEL, 2).transpose(1, 2).flatten(2).flatten(0, 1)
    assert torch.equal(got.isnan(), numbers.isnan())
    wanted = numbers.bfloat16()
    assert torch.equal(got[~numbers.isnan()], wanted[~numbers.isnan()])


def test_buffers_are_written_over(library: CDLL) -> None:
    torch.manual_seed(0)
    weights, first, second = PackedWeights(library, 1), torch.randn(64, 64), torch.randn(96, 64)
    before = weights.find(first, TILES)
    assert weights.find(first, TILES) == before
    assert weights.find(second, TILES) != before
    weights.refresh()
    first.neg_()
    elsewhere = first.clone()
    assert weights.find(elsewhere, TILES) == before
    got = weights.find(first, TILES)
    assert got != before
    weights.refresh()
    weights.refresh()  # nothing was asked for: nothing is kept
    assert not any(weights._spare.values())


def test_weights_that_are_not_dense_are_refused(library: CDLL) -> None:
    weights = PackedWeights(library, 1)
    for bad in (torch.zeros(4, 6).T, torch.zeros(4, 6, dtype=torch.float64)):
        with pytest.raises(ValueError, match="a kernel needs dense"):
            weights.find(bad, COLUMNS)
