"""The reference backend: plain torch, on every device.

Keys and values are gathered from their pages, and on the CPU the sums of attention are float64, as
the learner's are. Always available: faster backends are tested against it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.policies.backward import rms_norm, swiglu
from musicrl.policies.blocks import attend_causally, rotate
from musicrl.sampler.cache import PagedKV, Rows, Span
from musicrl.sampler.ops import EPS, Norm, WholeStep, feed_forward, norm_linear
from musicrl.sampler.sampling import Drawn, SamplingConfig, draw, draw_cells

FEWEST_ROWS = 16
"""Products of fewer rows take another path through the libraries, and other roundings."""


class ReferenceOps:
    """Plain torch, float32."""

    kv_dtype = torch.float32
    block_multiple = 1
    kv_by_head = False

    def refresh(self) -> None:
        """It keeps nothing of them."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight)

    def linear_gelu(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.gelu(product(x, weight))

    def linear_swiglu(self, x: Tensor, weight: Tensor) -> Tensor:
        return swiglu(product(x, weight))

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return residual + product(x, weight)

    def norm_linear(self, x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
        return norm_linear(self, x, norm, weight)

    def feed_forward(
        self, x: Tensor, norm: Norm, up: Tensor, down: Tensor, *, is_gated: bool
    ) -> Tensor:
        return feed_forward(self, x, norm, up, down, is_gated=is_gated)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight)

    def norm(self, x: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, offset, eps=EPS)

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, EPS)

    def attend(
        self, qkv: Tensor, kv: PagedKV, layer: int, rows: Rows, rotation: Tensor | None
    ) -> Tensor:
        heads = qkv.view(len(qkv), -1, kv.head_dim)
        num_kv = kv.num_kv_heads
        query, key, value = torch.split(heads, [heads.shape[1] - 2 * num_kv, num_kv, num_kv], dim=1)
        if rotation is not None:
            turn = rotation[rows.lens.long() - 1]
            query, key = rotate(query, turn), rotate(key, turn)
        kv.write_rows(layer, key, value, rows)
        return attend_rows(query, *kv.read(layer, rows), rows.lens).flatten(1)

    def attend_cached(self, query: Tensor, kv: PagedKV, layer: int, rows: Rows) -> Tensor:
        heads = query.view(len(query), -1, kv.head_dim)
        return attend_rows(heads, *kv.read(layer, rows), rows.lens).flatten(1)

    def attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
        return attend_varlen(query, key, value, span)

    def decode(self, x: Tensor, step: WholeStep) -> None:
        """It goes layer by layer."""

    def draw(self, logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Drawn:
        return draw(logits, uniform, config)

    def draw_cells(
        self, logits: Tensor, is_empty: Tensor | None, uniform: Tensor, config: SamplingConfig
    ) -> Drawn:
        return draw_cells(logits, is_empty, uniform, config)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, lens: Tensor) -> Tensor:
    """Mix for queries [B, H, D] the first `lens` int32 [B] of keys and values [B, T, Hkv, D].

    Query heads h*R .. h*R + R-1 share the key-value head h, R = H / Hkv. Sums on the CPU are
    float64.
    """
    dtype = query.dtype
    if query.device.type == "cpu":
        query, key, value = query.double(), key.double(), value.double()
    B, H, D = query.shape
    _, T, Hkv, _ = key.shape
    grouped = (query * (1 / math.sqrt(D))).view(B, Hkv, H // Hkv, D)
    scores = grouped @ key.permute(0, 2, 3, 1)
    ahead = torch.arange(T, device=query.device) >= lens[:, None]
    weights = scores.masked_fill(ahead[:, None, None], -torch.inf).softmax(dim=-1)
    return (weights @ value.transpose(1, 2)).view(B, H, D).to(dtype)


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
    """As `Ops.attend_varlen`: padded, so that one call of plain attention does it."""
    num_rows = len(span.bounds) - 1
    padded = (
        x.new_zeros(num_rows, span.longest, *x.shape[1:]).index_put((span.rows, span.positions), x)
        for x in (query, key, value)
    )
    return attend_causally(*padded, in_torch=True)[span.rows, span.positions]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, I] by weight [O, I]: the same bits for a row whatever its batch."""
    return F.linear(padded(x), weight)[: len(x)]


def padded(x: Tensor) -> Tensor:
    """x with rows of zeros to at least `FEWEST_ROWS`."""
    missing = FEWEST_ROWS - len(x)
    return F.pad(x, (0, 0, 0, missing)) if missing > 0 else x
