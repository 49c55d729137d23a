"""Building blocks of the token models: rotary positions, attention, transformer blocks.

A block is written once: it projects and mixes, and asks the `attend` it is given where keys and
values come from (all positions at once in the learner, a cache in the sampler). It knows neither
tokens nor streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicrl.policies.backward import attend_in_double

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [..., H, D], keys [..., Hkv, D], values [..., Hkv, D]) -> mixed values [..., H, D]."""


def rotations(num_positions: int, head_dim: int, base: float = 10_000.0) -> Tensor:
    """Rotary angles as cosine and sine, float32 [positions, 1, D / 2, 2] (RoFormer, 3.2)."""
    frequency = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()[:, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of x [..., H, D] by `rotation` [..., 1, D / 2, 2]; float32."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.view_as_complex(rotation)).flatten(-2)


def attend_causally(query: Tensor, key: Tensor, value: Tensor, *, in_torch: bool = False) -> Tensor:
    """Every position of [B, T, H, D] over itself and the positions before it; `in_torch` alone, or
    also in C."""
    is_exact = value.dtype == torch.float32 and value.device.type == "cpu"
    if in_torch or not is_exact or query.shape[2] != key.shape[2]:
        return _attend(query, key, value, is_causal=True)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return attend_in_double(query, key, value).transpose(1, 2)


def attend_over(query: Tensor, key: Tensor, value: Tensor, lens: Tensor | None = None) -> Tensor:
    """Every position of [B, T, H, D] over the first `lens` [B] (none: all) of keys and values
    [B, C, Hkv, D]."""
    if lens is None:
        return _attend(query, key, value, is_causal=False)
    counts = torch.arange(key.shape[1], device=key.device) < lens[:, None]
    return _attend(query, key, value, is_causal=False, mask=counts[:, None, None])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, mask: Tensor | None = None
) -> Tensor:
    """In float32 on the CPU sums are float64, as in the sampler: what is rounded to float32 is then
    the same bits however keys were blocked, and log-probabilities of both agree to 1e-6."""
    grouped = query.shape[2] != key.shape[2]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    dtype = value.dtype
    if dtype == torch.float32 and query.device.type == "cpu":
        query, key, value = query.double(), key.double(), value.double()
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )
    return mixed.to(dtype).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with fused projections; grouped queries if num_kv_heads < num_heads."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.split = [num_heads, num_kv_heads, num_kv_heads]
        self.qkv = nn.Linear(width, sum(self.split) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Mix x [..., W] through `attend`."""
        x = self.qkv(x)
        heads = x.view(*x.shape[:-1], -1, self.head_dim)
        query, key, value = torch.split(heads, self.split, dim=-2)
        mixed: Tensor = self.out(attend(query, key, value).flatten(-2))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block; residual outputs start scaled down by the depth."""

    def __init__(
        self, *, width: int, num_heads: int, num_kv_heads: int, mlp_ratio: int, num_layers: int
    ) -> None:
        super().__init__()
        self.is_recomputed = False
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, num_heads, num_kv_heads)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, mlp_ratio * width, bias=False)
        self.down = nn.Linear(mlp_ratio * width, width, bias=False)
        for linear in (self.attention.qkv, self.up):
            init_linear(linear)
        for linear in (self.attention.out, self.down):
            init_linear(linear, gain=1 / math.sqrt(2 * num_layers))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x [..., W] to [..., W]."""
        return keeping_inputs(self._mix, x, attend) if self.is_recomputed else self._mix(x, attend)

    def _mix(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), attend)
        mlp: Tensor = self.down(F.gelu(self.up(self.mlp_norm(x))))
        return x + mlp


def keeping_inputs(function: Callable[..., Tensor], *inputs: object) -> Tensor:
    """`function(*inputs)`, which is run again for its gradient; it must draw no random numbers."""
    found: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found


def init_linear(linear: nn.Linear, gain: float = 1.0) -> None:
    """Normal weights that keep the variance of the input, times `gain` squared."""
    nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
