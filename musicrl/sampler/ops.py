"""What a decoding step is made of, behind one interface: the backends of the sampler.

`reference` (reference.py) is plain torch, runs on every device and is what the others are tested
against. `cpu` (cpu.py) has weights that oneDNN packs, and the C kernels of kernels.c for the rest.
`flash` (flash.py) calls flash-attn on a GPU. In float32 the numbers agree to rounding; in bfloat16,
products with weights and the cached keys and values alone are rounded to it, while sums of layers,
norms, logits and probabilities stay float32. Backends know neither the meaning of tokens nor the
order of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from musicrl.sampler.cache import PagedKV, Rows, Span
from musicrl.sampler.sampling import Drawn, SamplingConfig

EPS = 1e-5
"""Of torch's norms."""


class Norm(NamedTuple):
    """Parameters of a norm of [B, W]."""

    weight: Tensor
    """[W]."""
    offset: Tensor | None
    """[W] of a layer norm, None of a root-mean-square norm."""


class LayerParts(NamedTuple):
    """Parameters of a layer of a decoder whose heads are D wide."""

    norm: Norm
    qkv: Tensor
    """[(H + 2 Hkv) * D, W]."""
    out: Tensor
    """[W, H * D]."""
    cross: tuple[Norm, Tensor, Tensor] | None
    """Norm, query [H * D, W] and output [W, H * D] of the attention to the prompt."""
    mlp_norm: Norm
    up: Tensor
    down: Tensor
    is_gated: bool


class WholeStep(NamedTuple):
    """What all layers of a decoding step of B rows read, and where they write."""

    layers: Callable[[], Sequence[LayerParts]]
    """Asked once for a policy and its cache."""
    kv: PagedKV
    rows: Rows
    rotation: Tensor | None
    """[positions, 1, D / 2, 2], as of `Ops.attend`."""
    prompts: tuple[PagedKV, Rows] | None
    """What `Ops.attend_cached` reads."""


class Ops(Protocol):
    """The operations on B rows. An instance lives as long as the weights that it is called with are
    what they are, or is told of new ones, so that it may keep them in another form."""

    def refresh(self) -> None:
        """The weights have changed where they lie."""
        ...

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of cached keys and values."""
        ...

    @property
    def block_multiple(self) -> int:
        """What the positions of a block must be a multiple of."""
        ...

    @property
    def kv_by_head(self) -> bool:
        """Whether `PagedKV` has its numbers `by_head`."""
        ...

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [B, I] by weight [O, I] to [B, O]."""
        ...

    def linear_gelu(self, x: Tensor, weight: Tensor) -> Tensor:
        """`linear`, then GELU, for the product that follows."""
        ...

    def linear_swiglu(self, x: Tensor, weight: Tensor) -> Tensor:
        """`linear` to [B, 2 F], then SiLU of the first half times the second, for the product that
        follows: [B, F]."""
        ...

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        """`linear`, then + residual [B, O]."""
        ...

    def norm_linear(self, x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
        """`linear` of x's norm."""
        ...

    def feed_forward(
        self, x: Tensor, norm: Norm, up: Tensor, down: Tensor, *, is_gated: bool
    ) -> Tensor:
        """x [B, W] and what the perceptron `up`, GELU or SwiGLU (`is_gated`), `down` makes of its
        norm: [B, W]."""
        ...

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """`linear` in float32, whatever the precision of the others."""
        ...

    def norm(self, x: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
        """Layer norm of x [B, W]."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [B, W] over the root of its mean square, by weight [W]."""
        ...

    def attend(
        self, qkv: Tensor, kv: PagedKV, layer: int, rows: Rows, rotation: Tensor | None
    ) -> Tensor:
        """Append each row's new key and value to the cache, mix for its query: [B, H * D].

        qkv [B, (H + 2 Hkv) * D]; queries and keys are turned by `rotation` [positions, 1, D / 2, 2]
        at the row's position."""
        ...

    def attend_cached(self, query: Tensor, kv: PagedKV, layer: int, rows: Rows) -> Tensor:
        """Mix what the cache holds for query [B, H * D], and append nothing: [B, H * D]."""
        ...

    def attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
        """Every position over its row's positions up to itself: query [N, H, D], key and value
        [N, Hkv, D], to [N, H, D]."""
        ...

    def decode(self, x: Tensor, step: WholeStep) -> Tensor | None:
        """x [B, W] through all layers of one decoding step, in one call, and x may be written over;
        None where the backend has no such call."""
        ...

    def draw(self, logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Drawn:
        """As `sampling.draw` defines it."""
        ...

    def draw_cells(
        self, logits: Tensor, is_empty: Tensor | None, uniform: Tensor, config: SamplingConfig
    ) -> Drawn:
        """As `sampling.draw_cells` defines it."""
        ...


def norm_linear(ops: Ops, x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
    """`Ops.norm_linear`, one operation after the other."""
    return ops.linear(normed(ops, x, norm), weight)


def feed_forward(
    ops: Ops, x: Tensor, norm: Norm, up: Tensor, down: Tensor, *, is_gated: bool
) -> Tensor:
    """`Ops.feed_forward`, one operation after the other."""
    wide = ops.linear_swiglu if is_gated else ops.linear_gelu
    return ops.linear_add(wide(normed(ops, x, norm), up), down, x)


def normed(ops: Ops, x: Tensor, norm: Norm) -> Tensor:
    """x [B, W] to [B, W]."""
    weight, offset = norm
    return ops.rms_norm(x, weight) if offset is None else ops.norm(x, weight, offset)
