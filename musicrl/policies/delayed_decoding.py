"""The layers of the delayed decoder, one step at a time: in one call of the backend where it has one.

It knows where rows find their steps and their prompts, and neither tokens nor outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from musicrl.policies.cache import DecodingCache
from musicrl.policies.delayed_layers import Layer
from musicrl.sampler.cache import PagedKV, Rows
from musicrl.sampler.ops import WholeStep


def decode(
    layers: Sequence[Layer], x: Tensor, rows: Rows, rotation: Tensor | None, cache: DecodingCache
) -> Tensor:
    """x [B, W] through all layers, which append to the cache: [B, W]. x may be written over."""
    prompts = None if cache.prompts is None else (cache.prompts, _prompt_rows(rows, cache))
    step = WholeStep(lambda: [layer.parts for layer in layers], cache.kv, rows, rotation, prompts)
    found = cache.ops.decode(x, step)
    if found is not None:
        return found
    for number, layer in enumerate(layers):
        attend = partial(cache.ops.attend, kv=cache.kv, layer=number, rows=rows, rotation=rotation)
        x = layer(cache.ops, x, attend, partial(_attend_prompts, cache, number, prompts))
    return x


def _attend_prompts(
    cache: DecodingCache, layer: int, prompts: tuple[PagedKV, Rows] | None, query: Tensor
) -> Tensor:
    assert prompts is not None
    kv, rows = prompts
    return cache.ops.attend_cached(query, kv, layer, rows)


def _prompt_rows(rows: Rows, cache: DecodingCache) -> Rows:
    """Each row's prompt: the block of its slot."""
    tables = rows.slots.to(torch.int32)[:, None]
    return Rows(tables, cache.contexts[0][rows.slots], rows.slots)
