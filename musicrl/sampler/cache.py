"""Keys and values of the sampler in pages, and where the rows of a step find theirs.

    pages [L, 2, blocks, page, Hkv, D]    the order of flash-attn's paged cache

Position t of a row lies in block table[t // page], at t % page. It knows neither tokens, nor who
holds a block, nor how attention mixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from musicrl.sampler.pages import zeros


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the B rows of a step stand, and what each may read."""

    tables: Tensor
    """int32 [B, M]: the blocks of each row, in order; past its positions, any block."""
    lens: Tensor
    """int32 [B]: positions in use, with the one that the step writes."""
    slots: Tensor
    """int64 [B]: the row's prompt in the contexts."""
    steps: Tensor | None = None
    """int64 [B]: number of the step; None for rows that are no steps of a grid."""
    num_steps: Tensor | None = None
    """int64 [B]: steps of the row's whole grid."""

    def ahead(self, count: int) -> Rows:
        """The same rows, so many steps later."""
        steps = None if self.steps is None else self.steps + count
        return Rows(self.tables, self.lens + count, self.slots, steps, self.num_steps)


@dataclass(frozen=True, slots=True)
class Span:
    """N positions of P rows that are encoded at once, one row after the other."""

    rows: Tensor
    """int64 [N]: which of the P rows."""
    positions: Tensor
    """int64 [N]: where in the row, from 0 on."""
    slots: Tensor
    """int64 [N]: where in the cache, block * page + offset."""
    bounds: Tensor
    """int32 [P + 1]: where each row starts among the N, and N (flash-attn's cu_seqlens)."""
    longest: int
    """Positions of the longest row."""

    @classmethod
    def of(
        cls,
        tables: Sequence[Sequence[int]],
        lens: Sequence[int],
        *,
        block_size: int,
        device: torch.device,
    ) -> Span:
        """The first `lens` positions of rows with these blocks."""
        rows = [row for row, length in enumerate(lens) for _ in range(length)]
        positions = [t for length in lens for t in range(length)]
        slots = [
            tables[row][t // block_size] * block_size + t % block_size
            for row, t in zip(rows, positions, strict=True)
        ]
        integers = partial(torch.tensor, dtype=torch.int64, device=device)
        return cls(
            rows=integers(rows),
            positions=integers(positions),
            slots=integers(slots),
            bounds=torch.tensor([0, *accumulate(lens)], dtype=torch.int32, device=device),
            longest=max(lens),
        )


class PagedKV:
    """Keys and values of every layer, by block."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        by_head: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`by_head`: in memory a head's positions of a block lie together."""
        inner = (num_kv_heads, block_size) if by_head else (block_size, num_kv_heads)
        shape = (num_layers, 2, num_blocks, *inner, head_dim)
        on_cpu = torch.device(device).type == "cpu"
        self.data = (
            zeros(shape, dtype) if on_cpu else torch.zeros(shape, dtype=dtype, device=device)
        )
        """As it lies in memory."""
        self.pages = self.data.transpose(3, 4) if by_head else self.data
        self.by_head = by_head
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Keep keys and values [N, Hkv, D] at positions `slots` int64 [N]: block * page + offset."""
        blocks, offsets = slots // self.block_size, slots % self.block_size
        for part, new in zip(self.pages[layer], (key, value), strict=True):
            part[blocks, offsets] = new.to(part.dtype)

    def write_rows(self, layer: int, key: Tensor, value: Tensor, rows: Rows) -> None:
        """Keep keys and values [B, Hkv, D] at each row's last position."""
        last = rows.lens.long() - 1
        blocks = rows.tables.gather(1, (last // self.block_size)[:, None])[:, 0].long()
        self.write(layer, key, value, blocks * self.block_size + last % self.block_size)

    def read(self, layer: int, rows: Rows) -> tuple[Tensor, Tensor]:
        """Keys and values [B, T, Hkv, D] of each row's first T positions, T the longest row's; past
        a row's own positions, anything."""
        width = -(-int(rows.lens.max()) // self.block_size)
        parts = self.pages[layer][:, rows.tables[:, :width].long()].flatten(2, 3)
        key, value = parts[:, :, : int(rows.lens.max())]
        return key, value

    def copy_blocks(self, pairs: list[tuple[int, int]], *, num_positions: int) -> None:
        """Copy the first positions of blocks in all layers, (from, to) each."""
        if pairs:
            sources, targets = (list(side) for side in zip(*pairs, strict=True))
            first = self.pages[:, :, :, :num_positions]
            first[:, :, targets] = first[:, :, sources]
