"""The hierarchical decoder one frame at a time, for the sampler.

The same numbers as `Trunk.forward`, from cached keys and values: of the frames as long as the
samples live, of the streams as long as one frame. What computes them is the backend's (`Ops`), and
where rows find theirs is the engine's (`Rows`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.policies.base import Draw
from musicrl.policies.blocks import Block, rotate
from musicrl.policies.cache import DecodingCache, StreamCache
from musicrl.policies.trunk import Trunk
from musicrl.sampler.cache import PagedKV, Rows, Span
from musicrl.sampler.ops import Ops

Mix = Callable[[Tensor], Tensor]
"""Fused projections [N, (H + 2 Hkv) * D] to mixed values [N, H * D]."""


def new_cache(
    trunk: Trunk, ops: Ops, *, num_rows: int, num_slots: int, num_blocks: int, block_size: int
) -> DecodingCache:
    """An empty cache of so many blocks, rows and slots of prompts."""
    config, device = trunk.config, trunk.start.device
    frames = PagedKV(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.width // config.num_heads,
        dtype=ops.kv_dtype,
        by_head=ops.kv_by_head,
        device=device,
    )
    streams = PagedKV(
        num_layers=config.depth_layers,
        num_blocks=num_rows,
        block_size=config.layout.num_streams,
        num_kv_heads=config.depth_heads,
        head_dim=config.depth_width // config.depth_heads,
        dtype=ops.kv_dtype,
        by_head=ops.kv_by_head,
        device=device,
    )
    biases = torch.zeros(num_slots, config.width, device=device)
    return DecodingCache(ops, frames, contexts=(biases,), streams=StreamCache(streams))


def prefill(
    trunk: Trunk,
    conditions: Tensor,
    history: Tensor,
    slots: Tensor,
    span: Span,
    cache: DecodingCache,
) -> None:
    """Encode P prompts and the frames that they already have, each row as far as `span` says."""
    prefix = trunk.embed_conditions(conditions)
    bias = cache.ops.linear(prefix.mean(dim=1), trunk.condition_bias.weight)
    cache.contexts[0][slots] = bias
    if history.shape[1]:
        frames = trunk.shifted_frames(history.clamp(min=0)) + bias[:, None]
        prefix = torch.cat([prefix, frames], dim=1)
    rotation = trunk.rotation[span.positions]
    x = prefix[span.rows, span.positions]
    for layer, block in enumerate(trunk.blocks):
        x = _block(cast(Block, block), x, cache.ops, partial(_extend, cache, layer, span, rotation))


def _extend(cache: DecodingCache, layer: int, span: Span, rotation: Tensor, qkv: Tensor) -> Tensor:
    """Keep all positions' keys and values, mix for their queries: [N, H * D]."""
    heads, num_kv = qkv.view(len(qkv), -1, cache.kv.head_dim), cache.kv.num_kv_heads
    query, key, value = torch.split(heads, [heads.shape[1] - 2 * num_kv, num_kv, num_kv], dim=1)
    query, key = rotate(query, rotation), rotate(key, rotation)
    cache.kv.write(layer, key, value, span.slots)
    return cache.ops.attend_varlen(query, key, value, span).flatten(1)


def step(trunk: Trunk, previous: Tensor, rows: Rows, cache: DecodingCache) -> Tensor:
    """Hidden state [B, W] of the next frame, from the tokens int64 [B, K] of the one before (-1
    before the first)."""
    embedded = trunk.embed_frames(previous.clamp(min=0))
    before = torch.where(previous[:, :1] < 0, trunk.start, embedded)
    x = cache.contexts[0][rows.slots] + before
    for layer, block in enumerate(trunk.blocks):
        attend = partial(
            cache.ops.attend, kv=cache.kv, layer=layer, rows=rows, rotation=trunk.rotation
        )
        x = _block(cast(Block, block), x, cache.ops, attend)
    return cache.ops.norm(x, trunk.norm.weight)


def emit(
    trunk: Trunk, heads: tuple[Tensor, ...], hidden: Tensor, cache: DecodingCache, draw: Draw
) -> Tensor:
    """Draw a frame's tokens int64 [B, K], one stream after the other, from its hidden state [B, W]
    and the K output `heads` [V_k, Wd]."""
    assert cache.streams is not None
    base = cache.ops.linear(hidden, trunk.depth_in.weight)
    tokens: list[Tensor] = []
    for k, rows in enumerate(cache.streams.rows(len(hidden))):
        x = base + trunk.depth_position[k]
        if k > 0:
            x = x + F.embedding(tokens[-1] + trunk.first_rows[k - 1], trunk.depth_token.weight)
        for layer, block in enumerate(trunk.depth_blocks):
            attend = partial(
                cache.ops.attend, kv=cache.streams.kv, layer=layer, rows=rows, rotation=None
            )
            x = _block(cast(Block, block), x, cache.ops, attend)
        feature = cache.ops.norm(x, trunk.depth_norm.weight)
        tokens.append(draw(k, cache.ops.logits(feature, heads[k])))
    return torch.stack(tokens, dim=1)


def _block(block: Block, x: Tensor, ops: Ops, attend: Mix) -> Tensor:
    """`Block.forward` of some positions [N, W]; `attend` takes their fused projections."""
    attention = block.attention
    qkv = ops.linear(ops.norm(x, block.attention_norm.weight), attention.qkv.weight)
    x = ops.linear_add(attend(qkv), attention.out.weight, x)
    wide = ops.linear_gelu(ops.norm(x, block.mlp_norm.weight), block.up.weight)
    return ops.linear_add(wide, block.down.weight, x)
