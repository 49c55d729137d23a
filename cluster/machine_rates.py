"""What this machine reaches, measured: the limit that the sampler's benchmark holds its steps to."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional as F

from musicrl.sampler.cost import StepCost
from musicrl.sampler.sampling import Precision
from musicrl.sampler.tile_routine import has_bfloat16_products

MEMORY_FLOATS = 2**26
PRODUCTS = {
    "cpu": ((128, 384, 1024), (128, 768, 3072), (128, 1024, 1024)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192)),
}
"""Rows, inputs and outputs of the products that the machine's rate is taken of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the machine reaches."""

    products: Mapping[Precision, float]
    """Floating-point operations a second. Without instructions for bfloat16 the sampler multiplies in
    float32, whatever the weights are stored in."""
    memory: float
    """Bytes read a second, from an array that fits no cache."""

    @classmethod
    def measure(cls, turns: int, device: torch.device) -> Rates:
        floats = torch.ones(MEMORY_FLOATS, device=device)
        repeats = 1 if device.type == "cpu" else 20
        memory = 4 * MEMORY_FLOATS / _fastest(turns, floats.sum, device, repeats=repeats)
        exact = product_rate(turns, "float32", device)
        is_rounding = device.type != "cpu" or has_bfloat16_products()
        rounded = product_rate(turns, "bfloat16", device) if is_rounding else exact
        return cls(products={"float32": exact, "bfloat16": rounded}, memory=memory)

    def seconds(self, cost: StepCost, precision: Precision) -> float:
        """Of a step whose products run at the fastest rate and whose reads do not overlap them."""
        size = 2 if precision == "bfloat16" else 4
        read = size * (cost.weights + cost.cached)
        return cost.flops / self.products[precision] + read / self.memory


@torch.inference_mode()
def product_rate(turns: int, precision: Precision, device: torch.device) -> float:
    """Floating-point operations a second of the fastest product found."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    best = 0.0
    for rows, inputs, outputs in PRODUCTS[device.type]:
        x = torch.randn(rows, inputs, dtype=dtype, device=device)
        weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
        for work in _products(x, weight):
            best = max(best, 2 * rows * inputs * outputs / _fastest(turns, work, device))
    return best


def _products(x: torch.Tensor, weight: torch.Tensor) -> list[Callable[[], object]]:
    """The ways to a product."""
    plain = partial(F.linear, x, weight)
    if x.device.type != "cpu":
        return [plain]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    fused = torch.ops.mkldnn._linear_pointwise
    return [plain, partial(fused, x, packed, None, "none", [], "none")]


def _fastest(
    turns: int, work: Callable[[], object], device: torch.device, *, repeats: int = 50
) -> float:
    """Seconds of one call, of the fastest turn."""
    seconds = []
    for _ in range(turns + 1):
        started = perf_counter()
        for _ in range(repeats):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((perf_counter() - started) / repeats)
    return min(seconds)


def processor(device: torch.device) -> str:
    """The name of the machine's processor, or of its GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
