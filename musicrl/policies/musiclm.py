"""The policy of the paper: one hierarchical decoder over semantic and coarse acoustic tokens.

Frames are interleaved by `FrameLayout`; conditioning is the RVQ tokens of the joint embedding
(paper section 3.1, sizes are this project's). It knows neither rewards nor algorithms, and leaves
temperature, top-k and the drawing itself to the sampler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.policies import decoding
from musicrl.policies.base import Draw
from musicrl.policies.cache import DecodingCache
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.trunk import Trunk
from musicrl.sampler.cache import Rows, Span
from musicrl.sampler.ops import Ops

__all__ = ["MusicLM", "MusicLMConfig"]

KIND = "policy"
HEAD_STD = 0.02


class MusicLM(nn.Module):
    """A policy (see policies/base.py) over a `FrameLayout` grid."""

    def __init__(self, config: MusicLMConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        self.num_steps = config.num_steps
        self.trunk = Trunk(config)
        self.head = nn.Parameter(torch.empty(sum(self.layout.vocab_sizes), config.depth_width))
        nn.init.normal_(self.head, std=HEAD_STD)

    @property
    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    @classmethod
    def from_file(cls, path: Path) -> MusicLM:
        """Raises FileNotFoundError or a ValueError naming the file and what is wrong with it."""
        tensors, values = load_tensors(path, kind=KIND)
        try:
            config = MusicLMConfig.from_mapping(values)
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from fault
        policy = cls(config)
        load_into(policy, tensors, origin=path)
        return policy

    def save(self, path: Path, *, as_half: bool = False) -> None:
        """Write weights and configuration; `as_half` in half precision, as shipped."""
        tensors = self.state_dict()
        tensors = half(tensors) if as_half else tensors
        save_tensors(path, tensors, kind=KIND, config=self.config_dict)

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Teacher-forced logits float32 [B, S, K, V] from tokens int64 [B, S, K] and conditions
        int64 [B, C] (-1: no condition). Cells outside a stream's vocabulary hold -inf."""
        V = self.layout.vocab_size
        streams = self._stream_logits(self.trunk(tokens, conditions))
        padded = [F.pad(x.float(), (0, V - x.shape[-1]), value=-torch.inf) for x in streams]
        return torch.stack(padded, dim=2)

    def token_logprobs(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Log-probabilities float32 [B, S, K], nats, of the tokens at temperature 1.

        The same as gathering from `forward`, without padded logits: what pretraining minimises.
        """
        streams = self._stream_logits(self.trunk(tokens, conditions))
        losses = [
            F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            for logits, targets in zip(streams, tokens.unbind(2), strict=True)
        ]
        return -torch.stack(losses, dim=1).view(tokens.shape)

    @property
    def num_prefix(self) -> int:
        """The conditioning tokens are positions of their own."""
        return self.config.condition_levels

    def new_cache(
        self, ops: Ops, *, num_rows: int, num_slots: int, num_blocks: int, block_size: int
    ) -> DecodingCache:
        """An empty cache; its context is what every frame adds of its prompt."""
        return decoding.new_cache(
            self.trunk,
            ops,
            num_rows=num_rows,
            num_slots=num_slots,
            num_blocks=num_blocks,
            block_size=block_size,
        )

    def prefill(
        self, conditions: Tensor, history: Tensor, slots: Tensor, span: Span, cache: DecodingCache
    ) -> None:
        """Encode prompts int64 [P, C] and the frames int64 [P, s, K] that follow them."""
        decoding.prefill(self.trunk, conditions, history, slots, span, cache)

    def step(self, previous: Tensor, rows: Rows, cache: DecodingCache) -> Tensor:
        """Hidden state [B, W] of the next frame from the tokens int64 [B, K] of the previous."""
        return decoding.step(self.trunk, previous, rows, cache)

    def emit(self, hidden: Tensor, rows: Rows, cache: DecodingCache, draw: Draw) -> Tensor:
        """Draw the K tokens of a frame in turn."""
        return decoding.emit(self.trunk, self._heads(), hidden, cache, draw)

    def _heads(self) -> tuple[Tensor, ...]:
        return torch.split(self.head, list(self.layout.vocab_sizes))

    def _stream_logits(self, features: Tensor) -> Iterator[Tensor]:
        """Logits [B, S, V_k] of each stream from features [B, S, K, Wd]."""
        for feature, head in zip(features.unbind(2), self._heads(), strict=True):
            yield F.linear(feature, head)
