"""The layers of the delayed decoder, written once for the learner and the sampler.

A layer computes through `Ops` and asks the `attend` and `cross` that it is given where keys and
values come from. It knows neither tokens nor caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.policies.blocks import init_linear, keeping_inputs
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.sampler.ops import LayerParts, Ops, normed
from musicrl.sampler.ops import Norm as NormParts

Mix = Callable[[Tensor], Tensor]
"""Projections of some positions to mixed values."""


class Norm(nn.Module):
    """Layer norm with an offset, or root-mean-square norm."""

    def __init__(self, config: DelayedConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.width))
        is_layer = config.norm == "layer"
        self.offset = nn.Parameter(torch.zeros(config.width)) if is_layer else None

    def forward(self, ops: Ops, x: Tensor) -> Tensor:
        """x [N, W] to [N, W]."""
        return normed(ops, x, self.parts)

    @property
    def parts(self) -> NormParts:
        return NormParts(self.weight, self.offset)


class Layer(nn.Module):
    """Pre-norm transformer layer; residual outputs start scaled down by the depth."""

    def __init__(self, config: DelayedConfig) -> None:
        super().__init__()
        W, D = config.width, config.head_dim
        inner, kv = config.num_heads * D, config.num_kv_heads * D
        self.config = config
        self.is_recomputed = False
        self.attention_norm, self.mlp_norm = Norm(config), Norm(config)
        self.qkv = nn.Linear(W, inner + 2 * kv, bias=False)
        self.out = nn.Linear(inner, W, bias=False)
        fused = 2 if config.mlp == "swiglu" else 1
        self.up = nn.Linear(W, fused * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, W, bias=False)
        inputs, outputs = [self.qkv, self.up], [self.out, self.down]
        if config.has_cross:
            self.cross_norm = Norm(config)
            self.cross_query = nn.Linear(W, inner, bias=False)
            self.cross_kv = nn.Linear(W, 2 * kv, bias=False)
            self.cross_out = nn.Linear(inner, W, bias=False)
            inputs += [self.cross_query, self.cross_kv]
            outputs += [self.cross_out]
        for linear in inputs:
            init_linear(linear)
        for linear in outputs:
            init_linear(linear, gain=1 / math.sqrt(2 * config.num_layers))

    def forward(self, ops: Ops, x: Tensor, attend: Mix, cross: Mix) -> Tensor:
        """x [N, W] to [N, W]; `attend` mixes steps, `cross` the prompt's states."""
        if self.is_recomputed:
            return keeping_inputs(self._mix, ops, x, attend, cross)
        return self._mix(ops, x, attend, cross)

    def _mix(self, ops: Ops, x: Tensor, attend: Mix, cross: Mix) -> Tensor:
        qkv = ops.norm_linear(x, self.attention_norm.parts, self.qkv.weight)
        x = ops.linear_add(attend(qkv), self.out.weight, x)
        if self.config.has_cross:
            query = ops.norm_linear(x, self.cross_norm.parts, self.cross_query.weight)
            x = ops.linear_add(cross(query), self.cross_out.weight, x)
        is_gated = self.config.mlp == "swiglu"
        norm, up, down = self.mlp_norm.parts, self.up.weight, self.down.weight
        return ops.feed_forward(x, norm, up, down, is_gated=is_gated)

    @property
    def parts(self) -> LayerParts:
        cross = None
        if self.config.has_cross:
            cross = self.cross_norm.parts, self.cross_query.weight, self.cross_out.weight
        return LayerParts(
            norm=self.attention_norm.parts,
            qkv=self.qkv.weight,
            out=self.out.weight,
            cross=cross,
            mlp_norm=self.mlp_norm.parts,
            up=self.up.weight,
            down=self.down.weight,
            is_gated=self.config.mlp == "swiglu",
        )

    def prompt(self, ops: Ops, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [P, C, Hkv, D] of prompt states [P, C, W]; empty without cross-attention."""
        P, C, _ = states.shape
        if not self.config.has_cross:
            empty = states.new_zeros(P, 0)
            return empty, empty
        both = ops.linear(states.flatten(0, 1), self.cross_kv.weight)
        key, value = both.view(P, C, -1, self.config.head_dim).chunk(2, dim=2)
        return key, value


def waves(config: DelayedConfig) -> Tensor:
    """Sinusoidal positions [S, W]: cosines of all frequencies, then sines (MusicGen's order), and a
    zero where the width is odd."""
    half = config.width // 2
    frequency = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / (half - 1))
    angle = torch.arange(config.num_steps, dtype=torch.float64)[:, None] * frequency
    found = torch.cat([angle.cos(), angle.sin()], dim=1).float()
    return F.pad(found, (0, config.width % 2))
