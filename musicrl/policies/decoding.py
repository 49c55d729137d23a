"""The hierarchical decoder one frame at a time, for the sampler.

The same numbers as `Trunk.forward`, from cached keys and values: of the frames as long as the
samples live, of the streams as long as one frame. What computes them is the backend's (`Ops`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.policies.base import Draw
from musicrl.policies.blocks import Block, attend_causally, rotate
from musicrl.policies.trunk import Trunk
from musicrl.sampler.cache import KVCache
from musicrl.sampler.ops import Ops


@dataclass(slots=True)
class DecodingCache:
    """What sampling keeps from step to step."""

    ops: Ops
    kv: KVCache
    """Of the frames, and of the prompts before them."""
    frame: KVCache
    """Of the streams of the frame under way."""
    samples_per_prompt: int
    bias: Tensor | None = None
    """[B, W]: what every frame adds of its condition; set by prefill."""


def new_cache(
    trunk: Trunk, num_prompts: int, samples_per_prompt: int, num_steps: int, ops: Ops
) -> DecodingCache:
    """An empty cache for `num_prompts` x `samples_per_prompt` rows of `num_steps` frames."""
    config, device = trunk.config, trunk.start.device
    kv = KVCache(
        num_prompts=num_prompts,
        samples_per_prompt=samples_per_prompt,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.width // config.num_heads,
        prompt_len=config.condition_levels,
        num_steps=num_steps,
        device=device,
    )
    frame = KVCache(
        num_prompts=num_prompts * samples_per_prompt,
        samples_per_prompt=1,
        num_layers=config.depth_layers,
        num_kv_heads=config.depth_heads,
        head_dim=config.depth_width // config.depth_heads,
        prompt_len=0,
        num_steps=config.layout.num_streams,
        device=device,
    )
    return DecodingCache(ops, kv, frame, samples_per_prompt)


def prefill(trunk: Trunk, conditions: Tensor, cache: DecodingCache) -> None:
    """Run the conditions int64 [P, C] through the global blocks, once per prompt."""
    prefix = trunk.embed_conditions(conditions)
    bias = cache.ops.linear(prefix.mean(dim=1), trunk.condition_bias.weight)
    cache.bias = bias.repeat_interleave(cache.samples_per_prompt, dim=0)
    rotation = trunk.rotation[: prefix.shape[1]]
    x = prefix
    for layer, block in enumerate(trunk.blocks):

        def attend(query: Tensor, key: Tensor, value: Tensor, layer: int = layer) -> Tensor:
            key = rotate(key, rotation)
            cache.kv.write_prompt(layer, key, value)
            return attend_causally(rotate(query, rotation), key, value)

        x = block(x, attend)


def step(trunk: Trunk, previous: Tensor | None, cache: DecodingCache) -> Tensor:
    """Hidden state [B, W] of the next frame, from the tokens int64 [B, K] of the one before."""
    assert cache.bias is not None, "step before prefill"
    kv = cache.kv
    x = cache.bias + (trunk.start if previous is None else trunk.embed_frames(previous))
    rotation = trunk.rotation[trunk.config.condition_levels + kv.length]
    kv.advance()
    for layer, block in enumerate(trunk.blocks):
        x = _block(cast(Block, block), x, cache.ops, kv, layer, rotation)
    return cache.ops.norm(x, trunk.norm.weight)


def emit(
    trunk: Trunk, heads: tuple[Tensor, ...], hidden: Tensor, cache: DecodingCache, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Draw a frame's tokens and log-probabilities [B, K], one stream after the other, from its
    hidden state [B, W] and the K output `heads` [V_k, Wd]."""
    base = cache.ops.linear(hidden, trunk.depth_in.weight)
    cache.frame.rewind()
    token: Tensor | None = None
    drawn: list[tuple[Tensor, Tensor]] = []
    for k, head in enumerate(heads):
        feature = _depth_feature(trunk, base, k, token, cache)
        token, logprob = draw(k, cache.ops.logits(feature, head))
        drawn.append((token, logprob))
    tokens, logprobs = zip(*drawn, strict=True)
    return torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1)


def _depth_feature(
    trunk: Trunk, base: Tensor, k: int, token: Tensor | None, cache: DecodingCache
) -> Tensor:
    """Feature [B, Wd] of stream k, from the token int64 [B] of stream k-1 (None for k = 0)."""
    x = base + trunk.depth_position[k]
    if token is not None:
        x = x + F.embedding(token + trunk.first_rows[k - 1], trunk.depth_token.weight)
    cache.frame.advance()
    for layer, block in enumerate(trunk.depth_blocks):
        x = _block(cast(Block, block), x, cache.ops, cache.frame, layer, None)
    return cache.ops.norm(x, trunk.depth_norm.weight)


def _block(
    block: Block, x: Tensor, ops: Ops, kv: KVCache, layer: int, rotation: Tensor | None
) -> Tensor:
    """`Block.forward` of one position [B, W]."""
    attention = block.attention
    qkv = ops.linear(ops.norm(x, block.attention_norm.weight), attention.qkv.weight)
    x = ops.linear_add(ops.attend(qkv, kv, layer, rotation), attention.out.weight, x)
    wide = ops.linear_gelu(ops.norm(x, block.mlp_norm.weight), block.up.weight)
    return ops.linear_add(wide, block.down.weight, x)
