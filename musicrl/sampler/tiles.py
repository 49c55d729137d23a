"""Products of bfloat16 in whole tiles, with what is done before and after in one call of `tiles.c`.

It keeps rounded weights and knows addresses; which products come this way is the backend's choice.
"""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor

from musicrl.sampler.addresses import address
from musicrl.sampler.ops import EPS

KEEP, ADD, SWIGLU, GELU, BOTH = range(5)
"""What `products.c` and `tiles.c` do with their sums."""
ROOM = 64
"""Numbers between two parts of the scratch."""


class Tiles:
    """The routine of blas.py on weights that do not change."""

    def __init__(self, library: CDLL, gemm: int, threads: int) -> None:
        self._library, self._gemm, self._threads = library, gemm, threads
        self._rounded: dict[tuple[int, torch.Size], Tensor] = {}
        self._scratch = torch.empty(0)

    def refresh(self) -> None:
        """Forget the rounded weights."""
        self._rounded.clear()

    def product(self, x: Tensor, weight: Tensor, after: int, residual: Tensor | None) -> Tensor:
        """x [B, I], rounded too, by the weight [O, I] and what comes after: float32."""
        rounded = self._round(weight)
        rows, inputs = x.shape
        outputs = weight.shape[0]
        out = torch.empty(rows, outputs // 2 if after == SWIGLU else outputs)
        room = rows * inputs + ROOM
        scratch = self._floats(room + 2 * rows * outputs)
        self._library.tile_product(
            *(self._gemm, address(x), rounded),
            *(None if residual is None else address(residual), out.data_ptr()),
            *(scratch, scratch + 4 * room),
            *(rows, inputs, outputs, after, self._threads),
        )
        return out

    def norm_product(
        self, x: Tensor, norm: Tensor, offset: Tensor | None, weight: Tensor, after: int
    ) -> Tensor:
        """`product` of x's norm [B, I]; without an offset by root mean square."""
        rounded = self._round(weight)
        rows, inputs = x.shape
        outputs = weight.shape[0]
        out = torch.empty(rows, outputs)
        room = rows * inputs + ROOM
        scratch = self._floats(2 * room + 2 * rows * outputs)
        self._library.norm_product(
            *(self._gemm, address(x), address(norm)),
            *(None if offset is None else address(offset), EPS, rounded, out.data_ptr()),
            *(scratch, scratch + 4 * room, scratch + 8 * room),
            *(rows, inputs, outputs, after, self._threads),
        )
        return out

    def feed_forward(
        self, x: Tensor, norm: Tensor, offset: Tensor | None, up: Tensor, down: Tensor, after: int
    ) -> Tensor:
        """x [B, W] and what a perceptron makes of its norm: [B, W]."""
        rows, width = x.shape
        outputs, hidden = up.shape[0], down.shape[1]
        out = torch.empty(rows, width)
        room = rows * max(width, hidden) + ROOM
        scratch = self._floats(3 * room + 2 * rows * max(outputs, width))
        self._library.feed_forward(
            *(self._gemm, address(x), address(norm)),
            *(None if offset is None else address(offset), EPS),
            *(self._round(up), self._round(down), out.data_ptr()),
            *(scratch + 4 * room * part for part in range(4)),
            *(rows, width, outputs, hidden, after, self._threads),
        )
        return out

    def _round(self, weight: Tensor) -> int:
        """Address of the weight in bfloat16."""
        key = weight.data_ptr(), weight.shape
        rounded = self._rounded.get(key)
        if rounded is None:
            rounded = self._rounded[key] = weight.detach().to(torch.bfloat16).contiguous()
        return rounded.data_ptr()

    def _floats(self, count: int) -> int:
        """Address of so many float32."""
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count)
        return self._scratch.data_ptr()
