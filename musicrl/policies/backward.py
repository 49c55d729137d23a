"""Operations of the learner whose gradients are written out, for fewer passes over memory.

Forward they are torch's own, to the bit (attention to the last bit of its float64 sums). What
autograd would keep of every operation in between is made again from the inputs, a few rows at a
time, so that it never leaves the processor's cache.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.chunks import chunks
from musicrl.sampler.native import kernels

ROOM = 16
"""What `causal.c` needs of scratch beyond steps and queries, at most."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [N, W] over the root of its mean square, by weight [W]."""
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def swiglu(both: Tensor) -> Tensor:
    """SiLU of the first half of each row [N, 2 F] times its second half: [N, F]."""
    joined: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return joined


def attend_in_double(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of float32 [B, H, T, D] with float64 sums, rounded to float32 at the end; its
    gradient is computed in float32. On the CPU alone."""
    mixed: Tensor = _DoubleAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return mixed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, weight.shape, weight, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight)
        for rows in chunks(x):
            part, outer = x[rows], gradients[0][rows]
            scale = part.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
            unit = part * scale
            of_weight += (outer * unit).sum(0)
            inner = outer * weight
            along = (inner * unit).mean(-1, keepdim=True)
            torch.mul(inner.addcmul_(unit, along, value=-1), scale, out=of_x[rows])
        return of_x, of_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        found = torch.empty_like(both)
        for rows in chunks(both):
            outer = gradients[0][rows]
            gate, up = both[rows].chunk(2, dim=-1)
            of_gate, of_up = found[rows].chunk(2, dim=-1)
            torch.mul(outer, F.silu(gate), out=of_up)
            of_gate.copy_(torch.ops.aten.silu_backward(outer * up, gate))
        return found


class _DoubleAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed, sums = _attend(query, key, value)
        ctx.save_for_backward(query, key, value, mixed, sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value = back(gradients[0], *ctx.saved_tensors, 0.0, True)
        return query, key, value


def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed values [B, H, T, D], and the logarithm of every query's sum of exponentials [B, H, T]."""
    library, size = kernels(), query.shape[-1]
    if (
        library is None
        or size % library.product_lanes()
        or any(x.stride(-1) != 1 for x in (query, key, value))
    ):
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mixed, sums = attend(*(x.double() for x in (query, key, value)), 0.0, True)
        return mixed.float(), sums.float()
    threads, (B, H, T, _) = torch.get_num_threads(), query.shape
    mixed, sums = torch.empty(query.shape), torch.empty(B, H, T)
    whole = T + ROOM
    room = torch.empty(threads * ((2 * size + ROOM) * whole + ROOM * size), dtype=torch.float64)
    inputs = query, key, value
    apart = [x.stride(place) for place in (0, 1, 2) for x in inputs]
    library.attend_causally(
        *(x.data_ptr() for x in inputs),
        (ctypes.c_int64 * len(apart))(*apart),
        *(room.data_ptr(), mixed.data_ptr(), sums.data_ptr(), B, H, T, size, threads),
    )
    return mixed, sums
