"""The CPU backend: products by oneDNN with weights packed once, C kernels for attention and draws.

It adds in the order in which the learner does wherever that is free, so that float32 samples carry
the learner's log-probabilities to about 1e-6. Knows addresses and layouts, not what they mean.
"""

from __future__ import annotations

from ctypes import CDLL

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.sampler.addresses import address
from musicrl.sampler.cache import PagedKV, Rows, Span
from musicrl.sampler.chains import chains_of, exact_product
from musicrl.sampler.layers import Layers
from musicrl.sampler.ops import EPS, Norm, WholeStep, feed_forward, norm_linear
from musicrl.sampler.packing import COLUMNS, HALVES, PAIRS, PackedWeights
from musicrl.sampler.reference import FEWEST_ROWS, attend_varlen, padded, product
from musicrl.sampler.sampling import Drawn, Precision, SamplingConfig
from musicrl.sampler.summation import Packed, pack, parts_of, product_in_parts
from musicrl.sampler.tile_routine import has_bfloat16_products, tile_routine
from musicrl.sampler.tiles import ADD, BOTH, GELU, KEEP, SWIGLU, Tiles

FEW_ROWS = 16
"""Up to so many rows, products in bfloat16 are C where no library's routine multiplies whole tiles of
it (tile_routine.py): reading the weights is what takes the time. On a processor without products of
bfloat16 they are C for any number."""
FEW_EXACT_ROWS = 32
"""Up to so many rows, products in float32 are C where it gives the bits of torch."""
SMALL_WEIGHT = 2**17
"""Weights of so few numbers are multiplied by both halves of what enters `linear`, as bfloat16: it costs
next to nothing, and queries and keys of narrow layers are where rounding tells most."""
SPARE = 16
"""Numbers that attention's scratch has room for beyond the row's, as attention.h says."""


class CpuOps:
    """oneDNN and C, for weights that do not change."""

    block_multiple = 1
    kv_by_head = True

    def __init__(self, library: CDLL, num_rows: int, precision: Precision = "float32") -> None:
        """`num_rows`: of most calls; others are as right and not as fast."""
        self._library = library
        self._asked, self._num_rows = num_rows, max(num_rows, FEWEST_ROWS)
        self.kv_dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._threads = torch.get_num_threads()
        self._weights = PackedWeights(library, self._threads)
        is_rounding = precision == "bfloat16"
        few = num_rows <= FEW_ROWS or not has_bfloat16_products()
        self._has_panels = is_rounding and few
        self._tiles: Tiles | None = None
        self._layers: Layers | None = None
        if is_rounding and (routine := tile_routine()) is not None:
            self._tiles = Tiles(library, routine, self._weights, self._threads)
            self._layers = Layers(library, routine, self._tiles, self._kept, self._threads)
        self._are_few = num_rows <= FEW_EXACT_ROWS
        self._packed: dict[tuple[int, torch.Size, torch.dtype], Packed] = {}
        self._scratch = torch.empty(0, dtype=torch.float64)

    def serves(self, num_rows: int) -> bool:
        """Whether it was made for so many rows, and for as many threads as there are now."""
        return (num_rows, torch.get_num_threads()) == (self._asked, self._threads)

    def refresh(self) -> None:
        """Forget the packed weights."""
        self._packed.clear()
        self._weights.refresh()
        if self._layers is not None:
            self._layers.refresh()

    @property
    def _is_fused(self) -> bool:
        return self._has_panels or self._tiles is not None

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if self._is_fused:
            return self._fused(x, weight, self._kept(weight))
        return self._product(x, weight, self.kv_dtype).float()

    def linear_gelu(self, x: Tensor, weight: Tensor) -> Tensor:
        """In the precision of products: what follows is one."""
        if self._is_fused:
            return self._fused(x, weight, GELU)
        return self._product(x, weight, self.kv_dtype, after="gelu")

    def linear_swiglu(self, x: Tensor, weight: Tensor) -> Tensor:
        if self._is_fused:
            return self._fused(x, weight, SWIGLU)
        both = self._product(x, weight, self.kv_dtype)
        out = both.new_empty(len(both), both.shape[1] // 2)
        is_exact = both.dtype == torch.float32
        join = self._library.exact_swiglu if is_exact else self._library.swiglu
        join(address(both, both.dtype), out.data_ptr(), *out.shape, self._threads)
        return out

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        if self._is_fused:
            return self._fused(x, weight, ADD, residual)
        if self.kv_dtype == torch.float32 and (chains := self._chains(weight)):
            return self._exact(x, weight, chains, residual)
        return residual + self._product(x, weight, self.kv_dtype)

    def norm_linear(self, x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
        if self._tiles is None:
            return norm_linear(self, x, norm, weight)
        return self._tiles.product(x, weight, self._kept(weight), norm=norm)

    def feed_forward(
        self, x: Tensor, norm: Norm, up: Tensor, down: Tensor, *, is_gated: bool
    ) -> Tensor:
        if self._tiles is None:
            return feed_forward(self, x, norm, up, down, is_gated=is_gated)
        return self._tiles.feed_forward(x, norm, up, down, SWIGLU if is_gated else GELU)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._product(x, weight, torch.float32)

    def norm(self, x: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
        if self.kv_dtype == torch.float32:  # the learner's bits
            return F.layer_norm(x, weight.shape, weight, offset, eps=EPS)
        out = torch.empty(x.shape)
        self._library.layer_norm(
            *(address(x), address(weight), None if offset is None else address(offset)),
            *(EPS, *x.shape, out.data_ptr(), self._threads),
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty(x.shape)
        data = address(x), address(weight), EPS
        self._library.rms_norm(*data, *x.shape, out.data_ptr(), self._threads)
        return out

    def attend(
        self, qkv: Tensor, kv: PagedKV, layer: int, rows: Rows, rotation: Tensor | None
    ) -> Tensor:
        num_heads = qkv.shape[1] // kv.head_dim - 2 * kv.num_kv_heads
        return self._attend(qkv, kv, layer, rows, rotation, num_heads, appends=True)

    def attend_cached(self, query: Tensor, kv: PagedKV, layer: int, rows: Rows) -> Tensor:
        num_heads = query.shape[1] // kv.head_dim
        return self._attend(query, kv, layer, rows, None, num_heads, appends=False)

    def attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
        return attend_varlen(query, key, value, span)

    def decode(self, x: Tensor, step: WholeStep) -> Tensor | None:
        return None if self._layers is None else self._layers.decode(x, step)

    def draw(self, logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Drawn:
        tokens, logprobs, kept = self.draw_cells(logits[:, None], None, uniform[None], config)
        return Drawn(tokens[:, 0], logprobs[:, 0], None if kept is None else kept[:, 0])

    def draw_cells(
        self, logits: Tensor, is_empty: Tensor | None, uniform: Tensor, config: SamplingConfig
    ) -> Drawn:
        streams, rows = uniform.shape
        vocab, is_guided = logits.shape[-1], logits.shape[0] > rows
        size = vocab if is_empty is None else vocab + 1
        tokens = torch.empty(rows, streams, dtype=torch.int64)
        logprobs = torch.empty(rows, streams)
        kept = None
        if config.top_k:
            kept = torch.empty(rows, streams, -(-size // 8), dtype=torch.uint8)
        self._library.draw_cells(
            *(address(logits), address(logits[rows:]) if is_guided else None),
            None if is_empty is None else address(is_empty, torch.bool),
            address(uniform, torch.float64),
            *(config.guidance, config.temperature, config.top_k, rows, streams, vocab),
            self._doubles(3 * vocab),
            *(tokens.data_ptr(), logprobs.data_ptr()),
            *(None if kept is None else kept.data_ptr(), self._threads),
        )
        return Drawn(tokens, logprobs, kept)

    def _attend(
        self,
        x: Tensor,
        kv: PagedKV,
        layer: int,
        rows: Rows,
        rotation: Tensor | None,
        num_heads: int,
        *,
        appends: bool,
    ) -> Tensor:
        assert kv.by_head, "the kernel reads caches whose heads lie together"
        size, width = kv.head_dim, rows.tables.shape[1]
        data, count = kv.data, x.shape[0]
        first = data.data_ptr() + layer * data.stride(0) * data.itemsize
        out = torch.empty(count, num_heads * size)
        self._library.attend(
            address(x),
            None if rotation is None else address(rotation),
            *(first, first + data.stride(1) * data.itemsize),
            *(address(rows.tables, torch.int32), address(rows.lens, torch.int32)),
            self._doubles(num_heads * (width * kv.block_size + 2 * size) + SPARE),
            out.data_ptr(),
            *(count, num_heads, kv.num_kv_heads, size, kv.block_size, width),
            *(appends, data.dtype == torch.bfloat16, self._threads),
        )
        return out

    def _kept(self, weight: Tensor) -> int:
        return BOTH if weight.numel() <= SMALL_WEIGHT else KEEP

    def _fused(
        self, x: Tensor, weight: Tensor, after: int, residual: Tensor | None = None
    ) -> Tensor:
        """x [B, I] by the rounded weight and what comes after, in one call: [B, O] in float32."""
        if self._tiles is not None:
            return self._tiles.product(x, weight, after, residual)
        if after == GELU:
            return F.gelu(self._few(x, weight, KEEP, None))
        return self._few(x, weight, KEEP if after == BOTH else after, residual)

    def _few(self, x: Tensor, weight: Tensor, after: int, residual: Tensor | None) -> Tensor:
        """The weight in panels alone is rounded."""
        packed = self._weights.find(weight, HALVES if after == SWIGLU else PAIRS)
        rows, inputs = x.shape
        outputs = len(weight) // 2 if after == SWIGLU else len(weight)
        out = torch.empty(rows, outputs)
        self._library.product(
            *(address(x), packed),
            *(None if residual is None else address(residual), address(out)),
            *(rows, inputs, outputs, after, self._threads),
        )
        return out

    def _product(
        self, x: Tensor, weight: Tensor, dtype: torch.dtype, after: str = "none"
    ) -> Tensor:
        """x by the packed weight, in `dtype`, then GELU if asked. In float32 the sums are the
        learner's; torch's own product without oneDNN, and where its order is not known."""
        if dtype == torch.float32 and (chains := self._chains(weight)):
            y = self._exact(x, weight, chains)
            return F.gelu(y) if after == "gelu" else y
        x = x.to(dtype)
        parts = self._parts(weight)
        if parts is None or not torch.backends.mkldnn.is_available():
            y = product(x, weight.to(dtype))
            return F.gelu(y) if after == "gelu" else y
        key = weight.data_ptr(), weight.shape, dtype
        if key not in self._packed:
            self._packed[key] = pack(weight.to(dtype), parts, self._num_rows)
        if self.kv_dtype == torch.float32 and len(x) < FEWEST_ROWS:
            return product_in_parts(padded(x), self._packed[key], parts, after)[: len(x)]
        return product_in_parts(x, self._packed[key], parts, after)

    def _chains(self, weight: Tensor) -> tuple[int, ...] | None:
        """Inputs of each chain of sums, None for many rows and where C does not give the bits of
        torch. Where products are bfloat16 no bits are to be kept."""
        outputs, inputs = weight.shape
        if not self._are_few:
            return None
        if self.kv_dtype == torch.bfloat16:
            return (inputs,)
        return chains_of(self._library, inputs, outputs, self._threads)

    def _exact(
        self,
        x: Tensor,
        weight: Tensor,
        chains: tuple[int, ...],
        residual: Tensor | None = None,
    ) -> Tensor:
        packed = self._weights.find(weight, COLUMNS)
        count = len(weight)
        return exact_product(self._library, x, packed, count, chains, self._threads, residual)

    def _parts(self, weight: Tensor) -> tuple[int, ...] | None:
        outputs, inputs = weight.shape
        return parts_of(inputs, outputs) if self.kv_dtype == torch.float32 else (inputs,)

    def _doubles(self, count: int) -> int:
        """Address of so many float64 for each thread."""
        if self._scratch.numel() < count * self._threads:
            self._scratch = torch.empty(count * self._threads, dtype=torch.float64)
        return self._scratch.data_ptr()
