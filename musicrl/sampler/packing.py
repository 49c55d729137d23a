"""Weights in the orders in which the C kernels read them, packed by `packing.c` once a reading.

Buffers of the weights before are written over: memory that is used for the first time costs more than
the packing. It knows addresses, and not what is multiplied.
"""

from __future__ import annotations

from collections import defaultdict
from ctypes import CDLL

import torch
from torch import Tensor

from musicrl.sampler.addresses import address

COLUMNS, PAIRS, HALVES, TILES, GATED_TILES = range(5)
"""Orders, as `packing.c` describes them."""


class PackedWeights:
    """Weights that do not change until `refresh`."""

    def __init__(self, library: CDLL, threads: int) -> None:
        self._library, self._threads = library, threads
        self._packed: dict[tuple[int, torch.Size, int], Tensor] = {}
        self._spare: dict[int, list[Tensor]] = {}

    def refresh(self) -> None:
        """Forget what the weights are; of their buffers, what was not asked for since the last time."""
        self._spare = defaultdict(list)
        for buffer in self._packed.values():
            self._spare[len(buffer)].append(buffer)
        self._packed.clear()

    def find(self, weight: Tensor, order: int) -> int:
        """Address of the weight [O, I] in this order. Raises ValueError unless it is dense float32."""
        key = weight.data_ptr(), weight.shape, order
        if key not in self._packed:
            self._packed[key] = self._pack(weight, order)
        return self._packed[key].data_ptr()

    def _pack(self, weight: Tensor, order: int) -> Tensor:
        spare = self._spare.get(self._library.packed_words(*weight.shape, order))
        out = spare.pop() if spare else None
        return packed(self._library, weight, order, self._threads, out=out)


def packed(
    library: CDLL, weight: Tensor, order: int, threads: int, *, out: Tensor | None = None
) -> Tensor:
    """The weight [O, I] in this order, as int32 words, in `out` if that is given."""
    source, sizes = address(weight.detach()), (*weight.shape, order)
    if out is None:
        out = torch.empty(library.packed_words(*sizes), dtype=torch.int32)
    library.pack_weight(source, out.data_ptr(), *sizes, threads)
    return out
