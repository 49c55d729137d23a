"""The GPU backend: flash-attn 2 on a paged cache, products in bfloat16.

It holds flash-attn to its contract (bfloat16, int32 tables, pages of a multiple of 256 positions,
appending in place) and leaves the rest to torch. Tests call it through a stand-in of the same
signature that refuses what flash-attn refuses.
"""

from __future__ import annotations

import importlib
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.sampler.cache import PagedKV, Rows, Span
from musicrl.sampler.ops import EPS, Norm, WholeStep, feed_forward, norm_linear
from musicrl.sampler.sampling import Drawn, SamplingConfig, draw, draw_cells

PAGE = 256
"""flash-attn 2 takes pages of a multiple of it."""


class FlashAttention(Protocol):
    """The part of the module `flash_attn` (2.8) that is called."""

    def flash_attn_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
        cache_seqlens: Tensor | None = None,
        block_table: Tensor | None = None,
        causal: bool = False,
        rotary_interleaved: bool = True,
    ) -> Tensor: ...

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        causal: bool = False,
    ) -> Tensor: ...


class FlashOps:
    """bfloat16 products and cache; residuals, norms and logits in float32."""

    kv_dtype = torch.bfloat16
    block_multiple = PAGE
    kv_by_head = False

    def __init__(self, attention: FlashAttention) -> None:
        self._attention = attention
        self._weights: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = {}
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def on(cls, device: torch.device) -> FlashOps:
        """Raises ValueError without a GPU or without flash-attn."""
        if device.type != "cuda":
            raise ValueError(f"backend flash needs a CUDA device, got {device}")
        try:
            return cls(importlib.import_module("flash_attn"))
        except ImportError as fault:
            raise ValueError(
                f"backend flash needs flash-attn (pip install 'musicrl[flash]'): {fault}"
            ) from fault

    def refresh(self) -> None:
        """Round the weights anew, in place: recorded steps read them where they lie."""
        for weight, rounded in self._weights.values():
            rounded.copy_(weight)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._product(x, weight).float()

    def linear_gelu(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.gelu(self._product(x, weight))

    def linear_swiglu(self, x: Tensor, weight: Tensor) -> Tensor:
        gate, up = self._product(x, weight).chunk(2, dim=-1)
        return F.silu(gate) * up

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return residual + self._product(x, weight)

    def norm_linear(self, x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
        return norm_linear(self, x, norm, weight)

    def feed_forward(
        self, x: Tensor, norm: Norm, up: Tensor, down: Tensor, *, is_gated: bool
    ) -> Tensor:
        return feed_forward(self, x, norm, up, down, is_gated=is_gated)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x.float(), weight.float())

    def norm(self, x: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, offset, eps=EPS)

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps=EPS)

    def attend(
        self, qkv: Tensor, kv: PagedKV, layer: int, rows: Rows, rotation: Tensor | None
    ) -> Tensor:
        heads = qkv.view(len(qkv), 1, -1, kv.head_dim).to(self.kv_dtype)
        num_kv = kv.num_kv_heads
        query, key, value = torch.split(heads, [heads.shape[2] - 2 * num_kv, num_kv, num_kv], dim=2)
        cosine, sine = (None, None) if rotation is None else self._tables(rotation, kv.block_size)
        mixed = self._attention.flash_attn_with_kvcache(
            query,
            *self._caches(kv, layer, rows),
            k=key,
            v=value,
            rotary_cos=cosine,
            rotary_sin=sine,
            cache_seqlens=rows.lens - 1,
            block_table=self._table(kv, rows),
            causal=True,
            rotary_interleaved=True,
        )
        return mixed.float().flatten(1)

    def attend_cached(self, query: Tensor, kv: PagedKV, layer: int, rows: Rows) -> Tensor:
        heads = query.view(len(query), 1, -1, kv.head_dim).to(self.kv_dtype)
        mixed = self._attention.flash_attn_with_kvcache(
            heads,
            *self._caches(kv, layer, rows),
            cache_seqlens=rows.lens,
            block_table=self._table(kv, rows),
            causal=True,
        )
        return mixed.float().flatten(1)

    def attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
        mixed = self._attention.flash_attn_varlen_func(
            query.to(self.kv_dtype),
            key.to(self.kv_dtype),
            value.to(self.kv_dtype),
            cu_seqlens_q=span.bounds,
            cu_seqlens_k=span.bounds,
            max_seqlen_q=span.longest,
            max_seqlen_k=span.longest,
            causal=True,
        )
        return mixed.float()

    def decode(self, x: Tensor, step: WholeStep) -> None:
        """It goes layer by layer, and is recorded."""

    def draw(self, logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Drawn:
        return draw(logits, uniform, config)

    def draw_cells(
        self, logits: Tensor, is_empty: Tensor | None, uniform: Tensor, config: SamplingConfig
    ) -> Drawn:
        return draw_cells(logits, is_empty, uniform, config)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        key = weight.data_ptr(), weight.shape
        if key not in self._weights:
            self._weights[key] = weight, weight.to(self.kv_dtype)
        return F.linear(x.to(self.kv_dtype), self._weights[key][1])

    def _caches(self, kv: PagedKV, layer: int, rows: Rows) -> tuple[Tensor, Tensor]:
        """Keys and values by block, or by row where flash-attn cannot take them as pages."""
        key, value = kv.data[layer] if _is_paged(kv) else kv.data[layer][:, : len(rows.lens)]
        return key, value

    def _table(self, kv: PagedKV, rows: Rows) -> Tensor | None:
        return rows.tables if _is_paged(kv) else None

    def _tables(self, rotation: Tensor, page: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of `rotation`, [positions, D / 2] of whole pages, as flash-attn wants."""
        key = rotation.data_ptr()
        if key not in self._rotary:
            angles = F.pad(rotation.squeeze(1), (0, 0, 0, 0, 0, -len(rotation) % page))
            angles = angles.to(self.kv_dtype)
            self._rotary[key] = (angles[..., 0].contiguous(), angles[..., 1].contiguous())
        return self._rotary[key]


def _is_paged(kv: PagedKV) -> bool:
    """Caches of other sizes have row b in block b."""
    return kv.block_size % PAGE == 0
