"""What a decoding step is made of, behind one interface: the backends of the sampler.

`reference` is plain torch, runs on every device and is what the other is tested against. `cpu` has
weights that oneDNN packs once per call, and the C kernels of kernels.c for the rest. In float32 the
numbers agree to rounding; in bfloat16, products with weights alone are rounded to it, while sums
of layers, norms, attention, logits and probabilities stay float32. Backends know neither the
meaning of tokens nor the order of layers.
"""

from __future__ import annotations

from ctypes import CDLL
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.policies.blocks import rotate
from musicrl.sampler.attention import attend_step
from musicrl.sampler.cache import KVCache
from musicrl.sampler.native import kernels
from musicrl.sampler.sampling import Precision, SamplingConfig, draw

EPS = 1e-5
"""Of torch's LayerNorm."""
LONGEST_SUM = 192
"""Inputs of a float32 product that oneDNN adds up in the order of torch's own product."""
FEWEST_ROWS = 12
"""Products of fewer rows take another path through the libraries, and other roundings."""


class Ops(Protocol):
    """The operations on B rows, one per sample. An instance lives for one call of the engine, so
    that it may keep weights in another form."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [B, I] by weight [O, I] to [B, O]."""
        ...

    def linear_gelu(self, x: Tensor, weight: Tensor) -> Tensor:
        """`linear`, then GELU."""
        ...

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        """`linear`, then + residual [B, O]."""
        ...

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """`linear` in float32, whatever the precision of the others."""
        ...

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Layer norm of x [B, W] without offset."""
        ...

    def attend(self, qkv: Tensor, kv: KVCache, layer: int, rotation: Tensor | None) -> Tensor:
        """Append keys and values of the open position, mix for its queries: [B, H * D].

        qkv [B, (H + 2 Hkv) * D]; queries and keys are turned by `rotation` [1, D / 2, 2]."""
        ...

    def draw(
        self, logits: Tensor, uniform: Tensor, config: SamplingConfig
    ) -> tuple[Tensor, Tensor]:
        """As `sampling.draw` defines it."""
        ...


def make_ops(config: SamplingConfig, *, num_rows: int, device: torch.device) -> Ops:
    """The operations of `config` for `num_rows` rows; backend "auto" is the fastest that runs here.

    Raises ValueError for what only backend cpu does, on another device or where its kernels cannot
    be built.
    """
    backend, is_exact = config.backend, config.precision == "float32"
    if backend == "reference" or (backend == "auto" and is_exact and device.type != "cpu"):
        return ReferenceOps()
    if device.type != "cpu":
        raise ValueError(f"backend cpu cannot sample on {device}")
    library = kernels()
    if library is not None:
        return CpuOps(library, num_rows, config.precision)
    if backend == "cpu" or not is_exact:
        raise ValueError("backend cpu needs a C compiler (the warning above says what failed)")
    return ReferenceOps()


class ReferenceOps:
    """Plain torch."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight)

    def linear_gelu(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.gelu(product(x, weight))

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return residual + product(x, weight)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, eps=EPS)

    def attend(self, qkv: Tensor, kv: KVCache, layer: int, rotation: Tensor | None) -> Tensor:
        heads = qkv.view(len(qkv), -1, kv.head_dim)
        num_kv = kv.num_kv_heads
        query, key, value = torch.split(heads, [heads.shape[1] - 2 * num_kv, num_kv, num_kv], dim=1)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        kv.write(layer, key, value)
        return attend_step(query, *kv.read(layer)).flatten(1)

    def draw(
        self, logits: Tensor, uniform: Tensor, config: SamplingConfig
    ) -> tuple[Tensor, Tensor]:
        return draw(logits, uniform, config)


class CpuOps:
    """oneDNN and C."""

    def __init__(self, library: CDLL, num_rows: int, precision: Precision = "float32") -> None:
        self._library = library
        self._num_rows = num_rows
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._threads = torch.get_num_threads()
        self._packed: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
        self._scratch = torch.empty(0, dtype=torch.float64)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._product(x, weight, self._dtype).float()

    def linear_gelu(self, x: Tensor, weight: Tensor) -> Tensor:
        """In the precision of products: what follows is one."""
        return self._product(x, weight, self._dtype, after="gelu")

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return residual + self._product(x, weight, self._dtype)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._product(x, weight, torch.float32)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, eps=EPS)

    def attend(self, qkv: Tensor, kv: KVCache, layer: int, rotation: Tensor | None) -> Tensor:
        size, num_kv = kv.head_dim, kv.num_kv_heads
        rows, num_heads = qkv.shape[0], qkv.shape[1] // size - 2 * num_kv
        num_prompts, prompt_len, capacity = kv.prompt.shape[2], kv.prompt.shape[4], kv.own.shape[4]
        out = torch.empty(rows, num_heads * size)
        self._library.attend(
            _address(qkv),
            None if rotation is None else _address(rotation),
            *(_address(part) for part in (*kv.prompt[layer], *kv.own[layer])),
            self._doubles(prompt_len + kv.length + 2 * size),
            _address(out),
            *(num_prompts, rows // num_prompts, num_heads, num_kv, size),
            *(prompt_len, capacity, kv.length, self._threads),
        )
        return out

    def draw(
        self, logits: Tensor, uniform: Tensor, config: SamplingConfig
    ) -> tuple[Tensor, Tensor]:
        rows, vocab = logits.shape
        tokens = torch.empty(rows, dtype=torch.int64)
        logprobs = torch.empty(rows)
        self._library.draw(
            *(_address(logits), _address(uniform, torch.float64)),
            *(config.temperature, config.top_k, rows, vocab),
            self._doubles(2 * vocab),
            *(_address(tokens, torch.int64), _address(logprobs), self._threads),
        )
        return tokens, logprobs

    def _product(
        self, x: Tensor, weight: Tensor, dtype: torch.dtype, after: str = "none"
    ) -> Tensor:
        """x by the packed weight, in `dtype`, then GELU if asked; torch's own without oneDNN, and
        where the learner would add in another order."""
        x = x.to(dtype)
        is_long = dtype == torch.float32 and weight.shape[1] > LONGEST_SUM
        if is_long or not torch.backends.mkldnn.is_available():
            y = product(x, weight.to(dtype))
            return F.gelu(y) if after == "gelu" else y
        key = weight.data_ptr(), weight.shape, dtype
        if key not in self._packed:
            dense, rows = weight.to(dtype).contiguous(), max(self._num_rows, FEWEST_ROWS)
            self._packed[key] = torch.ops.mkldnn._reorder_linear_weight(dense, rows)
        fused = torch.ops.mkldnn._linear_pointwise
        out: Tensor = fused(padded(x), self._packed[key], None, after, [], "none")
        return out[: len(x)]

    def _doubles(self, count: int) -> int:
        """Address of so many float64 for each thread."""
        if self._scratch.numel() < count * self._threads:
            self._scratch = torch.empty(count * self._threads, dtype=torch.float64)
        return self._scratch.data_ptr()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, I] by weight [O, I]: the same bits for a row whatever its batch."""
    return F.linear(padded(x), weight)[: len(x)]


def padded(x: Tensor) -> Tensor:
    """x with rows of zeros to at least `FEWEST_ROWS`."""
    missing = FEWEST_ROWS - len(x)
    return F.pad(x, (0, 0, 0, missing)) if missing > 0 else x


def _address(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Of what C reads: dense numbers of one type."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"a kernel needs dense {dtype}, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.data_ptr()
