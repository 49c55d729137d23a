"""The hierarchical decoder one frame at a time, for the sampler.

The same numbers as `Trunk.forward`, from cached keys and values: of the frames in a `KVCache` that
lives as long as the samples, of the streams in a buffer that lives as long as one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.policies.base import Draw
from musicrl.policies.blocks import attend_causally, rotate
from musicrl.policies.trunk import Trunk
from musicrl.sampler.attention import attend_step
from musicrl.sampler.cache import KVCache


@dataclass(slots=True)
class DecodingCache:
    """What sampling keeps from step to step."""

    kv: KVCache
    samples_per_prompt: int
    bias: Tensor | None = None
    """[B, W]: what every frame adds of its condition; set by prefill."""


def new_cache(
    trunk: Trunk, num_prompts: int, samples_per_prompt: int, num_steps: int
) -> DecodingCache:
    """An empty cache for `num_prompts` x `samples_per_prompt` rows of `num_steps` frames."""
    config = trunk.config
    kv = KVCache(
        num_prompts=num_prompts,
        samples_per_prompt=samples_per_prompt,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.width // config.num_heads,
        prompt_len=config.condition_levels,
        num_steps=num_steps,
        device=trunk.start.device,
    )
    return DecodingCache(kv, samples_per_prompt)


def prefill(trunk: Trunk, conditions: Tensor, cache: DecodingCache) -> None:
    """Run the conditions int64 [P, C] through the global blocks, once per prompt."""
    prefix = trunk.embed_conditions(conditions)
    cache.bias = trunk.bias(prefix).repeat_interleave(cache.samples_per_prompt, dim=0)
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

        def attend(query: Tensor, key: Tensor, value: Tensor, layer: int = layer) -> Tensor:
            kv.write(layer, rotate(key, rotation), value)
            return attend_step(rotate(query, rotation), *kv.read(layer))

        x = block(x, attend)
    hidden: Tensor = trunk.norm(x)
    return hidden


def emit(
    trunk: Trunk, heads: tuple[Tensor, ...], hidden: Tensor, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Draw a frame's tokens and log-probabilities [B, K], one stream after the other, from its
    hidden state [B, W] and the K output `heads` [V_k, Wd]."""
    frame = DepthFrame(trunk, hidden)
    token: Tensor | None = None
    drawn: list[tuple[Tensor, Tensor]] = []
    for k, head in enumerate(heads):
        feature = frame.feature(k, token)
        token, logprob = draw(k, F.linear(feature, head))
        drawn.append((token, logprob))
    tokens, logprobs = zip(*drawn, strict=True)
    return torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1)


class DepthFrame:
    """The depth transformer inside one frame, with the keys and values of its streams so far."""

    def __init__(self, trunk: Trunk, hidden: Tensor) -> None:
        config = trunk.config
        B, K = hidden.shape[0], config.layout.num_streams
        head_dim = config.depth_width // config.depth_heads
        shape = (config.depth_layers, 2, B, config.depth_heads, K, head_dim)
        self.trunk = trunk
        self.base = trunk.depth_in(hidden)
        self.kv = torch.empty(shape, device=hidden.device)

    def feature(self, k: int, token: Tensor | None) -> Tensor:
        """Feature [B, Wd] of stream k, from the token int64 [B] of stream k-1 (None for k = 0)."""
        x = self.base + self.trunk.depth_position[k]
        if token is not None:
            x = x + F.embedding(token + self.trunk.first_rows[k - 1], self.trunk.depth_token.weight)
        for layer, block in enumerate(self.trunk.depth_blocks):
            x = self._block(block, x, layer, k)
        feature: Tensor = self.trunk.depth_norm(x)
        return feature

    def _block(self, block: nn.Module, x: Tensor, layer: int, k: int) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.kv[layer]
            keys[:, :, k], values[:, :, k] = key, value
            mixed = F.scaled_dot_product_attention(
                query[:, :, None], keys[:, :, : k + 1], values[:, :, : k + 1]
            )
            return mixed[:, :, 0]

        y: Tensor = block(x, attend)
        return y
