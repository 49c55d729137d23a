"""Float32 products of few rows in C, with the bits of torch: chains of sums of known lengths.

Libraries multiply and add in one rounding, input by input, from zero again after some number of
inputs; which numbers is found by trying. It knows panels and a library of kernels, and no model.
"""

from __future__ import annotations

import functools
from ctypes import CDLL, Array, c_int

import torch
from torch import Tensor

from musicrl.sampler.packing import COLUMNS
from musicrl.sampler.packing import packed as pack
from musicrl.sampler.summation import guesses, products

ROWS = 27
"""Of the products that are compared with torch's: tiles of every size, and more rows than take the
libraries' other path."""


@functools.cache
def chains_of(library: CDLL, inputs: int, outputs: int, threads: int) -> tuple[int, ...] | None:
    """Lengths of the chains with which C gives the bits of `F.linear`, or of that on one thread; None
    where none do."""
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn(ROWS, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    packed = pack(library, weight, COLUMNS, threads)
    for wanted in products(x, weight):
        for chains in guesses(inputs):
            found = exact_product(library, x, packed.data_ptr(), outputs, chains, threads)
            if torch.equal(found, wanted):
                return chains
    return None


def exact_product(
    library: CDLL,
    x: Tensor,
    packed: int,
    outputs: int,
    chains: tuple[int, ...],
    threads: int,
    residual: Tensor | None = None,
) -> Tensor:
    """x [B, I] by the weight in COLUMNS, at its address, to [B, O], in chains of so many inputs, then
    + residual [B, O] if there is one.

    Raises ValueError when x is not dense float32.
    """
    for tensor in (x,) if residual is None else (x, residual):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            shape = tuple(tensor.shape)
            raise ValueError(f"a kernel needs dense float32, got {tensor.dtype} {shape}")
    rows, inputs = x.shape
    out = torch.empty(rows, outputs)
    library.exact_product(
        *(x.data_ptr(), packed, None if residual is None else residual.data_ptr()),
        *(out.data_ptr(), rows, inputs, outputs),
        *(_numbers(chains), len(chains), threads),
    )
    return out


@functools.cache
def _numbers(chains: tuple[int, ...]) -> Array[c_int]:
    return (c_int * len(chains))(*chains)
