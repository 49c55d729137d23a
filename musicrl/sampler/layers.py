"""All layers of a decoding step in one call of `layers.c`, on weights that do not change.

What a layer is made of is laid out for C once. It knows addresses and layouts; which steps come this
way is the backend's choice, and their bits are those of one operation after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import CDLL, Array, c_int, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from musicrl.sampler.addresses import address
from musicrl.sampler.cache import PagedKV, Rows
from musicrl.sampler.ops import EPS, LayerParts, Norm, WholeStep
from musicrl.sampler.tile_routine import TileRoutine
from musicrl.sampler.tiles import GELU, PANEL, ROOM, SWIGLU, TILE_ROWS, Tiles, whole

Prompts = tuple[PagedKV, Rows]


class _Plan(NamedTuple):
    """For one policy and its cache."""

    kv: PagedKV
    weights: Array[c_void_p]
    layers: Sequence[LayerParts]
    afters: tuple[int, int, int]
    """What is done with the sums of fused projections, of prompts' queries and of `up`."""


class _Form(NamedTuple):
    """For steps of one size."""

    sizes: tuple[int, int]
    form: Array[c_int]
    parts: Array[c_void_p]
    sums: int
    room: Tensor


class Layers:
    """Steps through a decoder's layers."""

    def __init__(
        self,
        library: CDLL,
        routine: TileRoutine,
        tiles: Tiles,
        kept: Callable[[Tensor], int],
        threads: int,
    ) -> None:
        """`kept` says what is done with a projection's sums."""
        self._library, self._routine, self._tiles = library, routine, tiles
        self._kept, self._threads = kept, threads
        self._plan: _Plan | None = None
        self._form: _Form | None = None

    def refresh(self) -> None:
        """Forget the weights."""
        self._plan = None

    def decode(self, x: Tensor, step: WholeStep) -> Tensor:
        """As `Ops.decode`; x is written over."""
        prompts, rows = step.prompts, step.rows
        if self._plan is None or self._plan.kv is not step.kv:
            self._plan, self._form = self._lay_out(step.layers(), step.kv, prompts), None
        sizes = len(x), rows.tables.shape[1]
        if self._form is None or self._form.sizes != sizes:
            self._form = self._size(self._plan, sizes, x.shape[1], prompts)
        asked = None if prompts is None else prompts[1]
        self._library.decode(
            *(*self._routine, self._plan.weights, self._form.form, EPS),
            None if step.rotation is None else address(step.rotation),
            *_places(rows),
            *((None, None) if asked is None else _places(asked)),
            *(self._form.parts, self._form.sums, address(x)),
        )
        return x

    def _lay_out(self, layers: Sequence[LayerParts], kv: PagedKV, prompts: Prompts | None) -> _Plan:
        found: list[int | None] = []
        for number, layer in enumerate(layers):
            found += [*_norm(layer.norm), self._tiles.pack(layer.qkv), self._tiles.pack(layer.out)]
            if layer.cross is None:
                found += [None] * 4
            else:
                norm, query, out = layer.cross
                found += [*_norm(norm), self._tiles.pack(query), self._tiles.pack(out)]
            up = self._tiles.pack(layer.up, is_gated=layer.is_gated)
            found += [*_norm(layer.mlp_norm), up, self._tiles.pack(layer.down)]
            found += _pages(kv, number)
            found += (None, None) if prompts is None else _pages(prompts[0], number)
        first = layers[0]
        query = first.qkv if first.cross is None else first.cross[1]
        afters = self._kept(first.qkv), self._kept(query), SWIGLU if first.is_gated else GELU
        return _Plan(kv, (c_void_p * len(found))(*found), layers, afters)

    def _size(
        self, plan: _Plan, sizes: tuple[int, int], width: int, prompts: Prompts | None
    ) -> _Form:
        (rows, table), kv, first = sizes, plan.kv, plan.layers[0]
        outputs, inner, hidden = len(first.qkv), first.out.shape[1], first.down.shape[1]
        heads = inner // kv.head_dim
        page = 0 if prompts is None else prompts[0].block_size
        numbers = [len(plan.layers), rows, width, heads, kv.num_kv_heads, kv.head_dim]
        numbers += [kv.block_size, table, page, hidden, *plan.afters, self._threads]
        filled = whole(rows, TILE_ROWS)
        longest = max(table * kv.block_size, page)
        counts = [
            *(rows * width, rows * outputs, rows * inner),
            *(filled * whole(max(width, inner), PANEL), filled * whole(hidden, PANEL) // 2),
            2 * self._threads * (heads * (longest + 2 * kv.head_dim) + ROOM),
            4 * self._threads * filled * PANEL,
        ]
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + whole(count + ROOM, ROOM))
        room = torch.empty(starts[-1])
        places = [room.data_ptr() + 4 * start for start in starts[:-1]]
        form = (c_int * len(numbers))(*numbers)
        return _Form(sizes, form, (c_void_p * 6)(*places[:6]), places[6], room)


def _norm(norm: Norm) -> tuple[int, int | None]:
    return address(norm.weight), None if norm.offset is None else address(norm.offset)


def _pages(kv: PagedKV, layer: int) -> tuple[int, int]:
    """Where a layer's keys and values begin."""
    data = kv.data
    keys = data.data_ptr() + layer * data.stride(0) * data.itemsize
    return keys, keys + data.stride(1) * data.itemsize


def _places(rows: Rows) -> tuple[int, int]:
    return address(rows.tables, torch.int32), address(rows.lens, torch.int32)
