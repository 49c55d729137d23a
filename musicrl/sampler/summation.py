"""In which order torch adds the terms of a float32 product, found by trying.

A library adds long sums in parts, and rounds after each; which parts is its own affair and differs
between machines. A product that oneDNN computes in the same parts, added in the same order, has the
same bits as the learner's, at oneDNN's pace.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Packed = Sequence[Tensor]
"""Weights of the parts."""
BLOCKS = (192, 256, 384, 128, 336, 512)
"""Lengths of parts that libraries are known to use."""
ROWS = 48
"""Of the products that are tried."""


@functools.cache
def parts_of(inputs: int, outputs: int) -> tuple[int, ...] | None:
    """Lengths of the parts in which torch adds up `inputs` terms of each of so many sums, or does so
    on one thread; None when no guess fits."""
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn(ROWS, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    for wanted in products(x, weight):
        for parts in guesses(inputs):
            if torch.equal(product_in_parts(x, pack(weight, parts, ROWS), parts), wanted):
                return parts
    return None


def products(x: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """`F.linear` of all threads, then of one: libraries that split the sums of few long rows among
    threads, in an order that depends on the number of either, do not split those of many rows."""
    yield F.linear(x, weight)
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = F.linear(x, weight)
    finally:
        torch.set_num_threads(count)
    yield alone


def pack(weight: Tensor, parts: Sequence[int], num_rows: int) -> Packed:
    """The weight [O, I] for `product_in_parts` of about `num_rows` rows."""
    return tuple(
        torch.ops.mkldnn._reorder_linear_weight(part.contiguous(), num_rows)
        for part in weight.split(list(parts), dim=1)
    )


def product_in_parts(
    x: Tensor, packed: Packed, parts: Sequence[int], after: str = "none"
) -> Tensor:
    """x [B, I] by a packed weight: [B, O], then `after` ("none" or "gelu")."""
    fused = torch.ops.mkldnn._linear_pointwise
    if len(parts) == 1:
        whole: Tensor = fused(x, packed[0], None, after, [], "none")
        return whole
    first, *others = (part.contiguous() for part in x.split(list(parts), dim=1))
    out: Tensor = fused(first, packed[0], None, "none", [], "none")
    for part, weight in zip(others, packed[1:], strict=True):
        out = fused.binary(part, out, weight, None, "add")
    return F.gelu(out) if after == "gelu" else out


def guesses(inputs: int) -> Iterator[tuple[int, ...]]:
    """Parts that libraries are known to use: the whole, blocks of one length and what is left, the
    same with the last two made even, halves."""
    yield (inputs,)
    for block in BLOCKS:
        if inputs > block:
            whole, rest = divmod(inputs, block)
            parts = (block,) * whole + ((rest,) if rest else ())
            yield parts
            left = parts[-2] + parts[-1]
            even = (*parts[:-2], -(-left // 2), left // 2)
            if even != parts:
                yield even
    half = -(-inputs // 2)
    yield (half, inputs - half)
