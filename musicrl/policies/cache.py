"""What decoding keeps: of the steps so far, of the prompts, and of the step under way.

Families of policies use as much of it as they need. The engine owns it, decides which blocks and
slots a row gets, and knows nothing of what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musicrl.sampler.cache import PagedKV, Rows
from musicrl.sampler.ops import Ops


@dataclass(slots=True)
class DecodingCache:
    """The tensors of one engine, and how to compute with them."""

    ops: Ops
    """They know the weights that are decoded with."""
    kv: PagedKV
    """Of the steps, and of the positions before them."""
    contexts: tuple[Tensor, ...] = ()
    """[slots, ...] each: what prefill keeps of every prompt besides keys and values."""
    streams: StreamCache | None = None
    """Of the step under way, where its streams are drawn one after the other."""
    prompts: PagedKV | None = None
    """Of the prompts that are attended to beside the steps: a block is a slot."""


class StreamCache:
    """Keys and values of the K streams of a step: row b of the step is block b."""

    def __init__(self, kv: PagedKV) -> None:
        self.kv = kv
        self._rows: dict[int, tuple[Rows, ...]] = {}

    def rows(self, num_rows: int) -> tuple[Rows, ...]:
        """The `Rows` of each stream, for so many rows: the same tensors every time, which recorded
        steps rely on."""
        if num_rows not in self._rows:
            device = self.kv.data.device
            blocks = torch.arange(num_rows, device=device)
            tables = blocks.to(torch.int32)[:, None]
            self._rows[num_rows] = tuple(
                Rows(tables, torch.full_like(tables[:, 0], stream + 1), blocks)
                for stream in range(self.kv.block_size)
            )
        return self._rows[num_rows]
