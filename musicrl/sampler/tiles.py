"""Products of bfloat16 in whole tiles, with what is done before and after in one call of `tiles.c`.

It knows addresses; which products come this way is the backend's choice.
"""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor

from musicrl.sampler.addresses import address
from musicrl.sampler.ops import EPS, Norm
from musicrl.sampler.packing import GATED_TILES, TILES, PackedWeights
from musicrl.sampler.tile_routine import TileRoutine

KEEP, ADD, SWIGLU, GELU, BOTH = range(5)
"""What `products.c` and `tiles.c` do with their sums."""
PANEL, TILE_ROWS = 64, 16
"""Columns and rows that `tiles.c` multiplies at least."""
ROOM = 64
"""Numbers between two parts of the scratch."""


class Tiles:
    """The routine on weights that do not change."""

    def __init__(
        self, library: CDLL, routine: TileRoutine, weights: PackedWeights, threads: int
    ) -> None:
        self._library, self._routine, self._threads = library, routine, threads
        self._weights = weights
        self._scratch = torch.empty(0)

    def product(
        self,
        x: Tensor,
        weight: Tensor,
        after: int,
        residual: Tensor | None = None,
        norm: Norm | None = None,
    ) -> Tensor:
        """x [B, I], normed if there is a norm and rounded, by the weight [O, I] and what comes after:
        float32."""
        packed = self.pack(weight, is_gated=after == SWIGLU)
        rows, inputs = x.shape
        outputs = weight.shape[0] // 2 if after == SWIGLU else weight.shape[0]
        out = torch.empty(rows, outputs)
        size = whole(rows, TILE_ROWS) * whole(inputs, PANEL) + ROOM
        scratch = self._floats(2 * size + self._sums(rows))
        weights = (None, None) if norm is None else norm
        self._library.tile_product(
            *(*self._routine, address(x), *map(_address, weights), EPS, packed),
            *(_address(residual), out.data_ptr()),
            *(scratch, scratch + 4 * size, scratch + 8 * size),
            *(rows, inputs, outputs, after, self._threads),
        )
        return out

    def feed_forward(self, x: Tensor, norm: Norm, up: Tensor, down: Tensor, after: int) -> Tensor:
        """x [B, W] and what a perceptron makes of its norm: [B, W]."""
        rows, width = x.shape
        hidden = down.shape[1]
        out = torch.empty(rows, width)
        size = whole(rows, TILE_ROWS) * whole(max(width, hidden), PANEL) + ROOM
        scratch = self._floats(3 * size + self._sums(rows))
        self._library.feed_forward(
            *(*self._routine, address(x), *map(_address, norm), EPS),
            *(self.pack(up, is_gated=after == SWIGLU), self.pack(down), out.data_ptr()),
            *(scratch + 4 * size * part for part in range(4)),
            *(rows, width, hidden, after, self._threads),
        )
        return out

    def pack(self, weight: Tensor, *, is_gated: bool = False) -> int:
        """Address of the weight in bfloat16, in panels; of one that is gated, each with its gate's."""
        return self._weights.find(weight, GATED_TILES if is_gated else TILES)

    def _sums(self, rows: int) -> int:
        return 4 * self._threads * whole(rows, TILE_ROWS) * PANEL

    def _floats(self, count: int) -> int:
        """Address of so many float32."""
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count)
        return self._scratch.data_ptr()


def whole(count: int, part: int) -> int:
    """The multiple of `part` that holds so many."""
    return -(-count // part) * part


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else address(tensor)
