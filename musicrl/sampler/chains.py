"""Float32 products of few rows in C, with the bits of torch: chains of sums of one length.

Libraries multiply and add in one rounding, input by input, from zero again after some number of
inputs; which number is found by trying. It knows panels and a library of kernels, and no model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from ctypes import CDLL

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.sampler.panels import columns
from musicrl.sampler.summation import BLOCKS

ROWS = 27
"""Of the products that are compared with torch's: tiles of every size, and more rows than take the
libraries' other path."""


@functools.cache
def block_of(library: CDLL, inputs: int, outputs: int, threads: int) -> int | None:
    """The inputs of a chain with which C gives the bits of `F.linear`; None where none does."""
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn(ROWS, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    wanted, packed = F.linear(x, weight), columns(weight, library.product_lanes())
    for block in _guesses(inputs):
        if torch.equal(exact_product(library, x, packed, outputs, block, threads), wanted):
            return block
    return None


def exact_product(
    library: CDLL, x: Tensor, packed: Tensor, outputs: int, block: int, threads: int
) -> Tensor:
    """x [B, I] by the weight in `columns` to [B, O], in chains of `block` inputs.

    Raises ValueError when x is not dense float32.
    """
    if x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(f"a kernel needs dense float32, got {x.dtype} {tuple(x.shape)}")
    rows, inputs = x.shape
    out = torch.empty(rows, outputs)
    library.exact_product(
        *(x.data_ptr(), packed.data_ptr(), out.data_ptr()),
        *(rows, inputs, outputs, block, threads),
    )
    return out


def _guesses(inputs: int) -> Iterator[int]:
    yield inputs
    yield from (block for block in BLOCKS if block < inputs)
    yield -(-inputs // 2)
