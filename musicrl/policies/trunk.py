"""The hierarchical decoder without its outputs (paper section 3.1; RQ-Transformer, MegaByte).

    conditions [B, C] ──► C positions ─┐
    frame s-1  [B, K] ──► sum of embeddings + condition bias ──► global transformer ──► hidden s
    hidden s + tokens 0..k-1 of frame s ──► depth transformer ──► feature of cell (s, k)

The feature of a cell has seen every earlier frame and the earlier streams of its own frame, and
nothing else. Policy and value network both stand on it. It knows no vocabulary outputs.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.layout import FrameLayout
from musicrl.policies.blocks import (
    Block,
    attend_causally,
    init_linear,
    rotate,
    rotations,
)
from musicrl.policies.config import MusicLMConfig
from musicrl.sampler.reference import product

EMBEDDING_STD = 0.1


class Trunk(nn.Module):
    """Embeddings, global transformer over frames, depth transformer over streams."""

    rotation: Tensor
    offsets: Tensor
    condition_offsets: Tensor

    def __init__(self, config: MusicLMConfig) -> None:
        super().__init__()
        self.config = config
        vocab, W, Wd = config.layout.vocab_sizes, config.width, config.depth_width
        self.first_rows = (0, *accumulate(vocab[:-1]))
        self.token = nn.Embedding(sum(vocab), W)
        self.start = nn.Parameter(torch.empty(W))
        self.condition = nn.Embedding(config.condition_levels * (config.condition_vocab + 1), W)
        self.condition_bias = nn.Linear(W, W, bias=False)
        self.blocks = nn.ModuleList(_global_block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(W, bias=False)
        self.depth_in = nn.Linear(W, Wd, bias=False)
        self.depth_token = nn.Embedding(sum(vocab[:-1]), Wd)
        self.depth_position = nn.Parameter(torch.empty(len(vocab), Wd))
        self.depth_blocks = nn.ModuleList(_depth_block(config) for _ in range(config.depth_layers))
        self.depth_norm = nn.LayerNorm(Wd, bias=False)
        self._add_buffers()
        self._init()

    def _add_buffers(self) -> None:
        config = self.config
        positions = config.condition_levels + config.num_steps
        rows = config.condition_vocab + 1
        buffers = {
            "rotation": rotations(positions, config.width // config.num_heads),
            "offsets": torch.tensor(self.first_rows),
            "condition_offsets": torch.arange(config.condition_levels) * rows,
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def _init(self) -> None:
        for table in (self.token, self.condition, self.depth_token):
            nn.init.normal_(table.weight, std=EMBEDDING_STD)
        for vector in (self.start, self.depth_position):
            nn.init.normal_(vector, std=EMBEDDING_STD)
        for linear in (self.condition_bias, self.depth_in):
            init_linear(linear)

    @property
    def layout(self) -> FrameLayout:
        return self.config.layout

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Features [B, S, K, Wd] of every cell of tokens int64 [B, S, K], conditions [B, C]."""
        B, S, K = tokens.shape
        hidden = self.hidden(tokens, conditions)
        x = self.depth_inputs(hidden, tokens).view(B * S, K, -1)
        for block in self.depth_blocks:
            x = block(x, attend_causally)
        features: Tensor = self.depth_norm(x)
        return features.view(B, S, K, -1)

    def hidden(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Hidden states [B, S, W] of every frame: of what lies before it."""
        C = conditions.shape[1]
        prefix = self.embed_conditions(conditions)
        frames = self.shifted_frames(tokens) + self.bias(prefix)[:, None]
        x = torch.cat([prefix, frames], dim=1)
        rotation = self.rotation[: x.shape[1]]
        for block in self.blocks:
            x = block(
                x, lambda q, k, v: attend_causally(rotate(q, rotation), rotate(k, rotation), v)
            )
        hidden: Tensor = self.norm(x[:, C:])
        return hidden

    def embed_conditions(self, conditions: Tensor) -> Tensor:
        """Conditions int64 [P, C] to positions [P, C, W]; -1 is 'no condition' (a learned row)."""
        rows = torch.where(conditions < 0, self.config.condition_vocab, conditions)
        embedded: Tensor = self.condition(rows + self.condition_offsets)
        return embedded

    def bias(self, prefix: Tensor) -> Tensor:
        """What every frame adds of its condition, [P, W]: without it conditioning is forgotten."""
        return product(prefix.mean(dim=1), self.condition_bias.weight)

    def embed_frames(self, tokens: Tensor) -> Tensor:
        """Sum of the embeddings of each frame's K tokens, [N, K] to [N, W]."""
        return F.embedding_bag(tokens + self.offsets, self.token.weight, mode="sum")

    def shifted_frames(self, tokens: Tensor) -> Tensor:
        """Frame inputs [B, S, W]: the start vector, then frames 0..S-2."""
        B, S, _ = tokens.shape
        start = self.start.expand(B, 1, -1)
        before = self.embed_frames(tokens[:, :-1].flatten(0, 1)).view(B, S - 1, start.shape[-1])
        return torch.cat([start, before], dim=1)

    def depth_inputs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Inputs [B, S, K, Wd]: the frame's hidden state, and the token of the stream before."""
        base: Tensor = self.depth_in(hidden)[:, :, None] + self.depth_position
        before: Tensor = self.depth_token(tokens[..., :-1] + self.offsets[:-1])
        return base + F.pad(before, (0, 0, 1, 0))


def _global_block(config: MusicLMConfig) -> Block:
    return Block(
        width=config.width,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        mlp_ratio=config.mlp_ratio,
        num_layers=config.num_layers,
    )


def _depth_block(config: MusicLMConfig) -> Block:
    return Block(
        width=config.depth_width,
        num_heads=config.depth_heads,
        num_kv_heads=config.depth_heads,
        mlp_ratio=config.mlp_ratio,
        num_layers=config.depth_layers,
    )
