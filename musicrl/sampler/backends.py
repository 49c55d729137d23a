"""The choice of a backend for a device and a precision."""

from __future__ import annotations

import torch

from musicrl.sampler.cpu import CpuOps
from musicrl.sampler.flash import PAGE, FlashOps
from musicrl.sampler.native import kernels
from musicrl.sampler.ops import Ops
from musicrl.sampler.reference import ReferenceOps
from musicrl.sampler.sampling import SamplingConfig


def make_ops(
    config: SamplingConfig, *, num_rows: int, device: torch.device, before: Ops | None = None
) -> Ops:
    """The operations of `config` for `num_rows` rows; backend "auto" is the fastest exact one that
    runs here. `before`: those of the same settings and device on earlier weights, which come back,
    told to forget them, where they serve as many rows.

    Raises ValueError for a backend on a device that it does not run on, or whose kernels are not
    there.
    """
    backend, is_exact = config.backend, config.precision == "float32"
    if backend == "flash" or (backend == "auto" and not is_exact and device.type == "cuda"):
        if config.block_size % PAGE:
            raise ValueError(
                f"sampling.block_size must be a multiple of {PAGE} with backend flash, "
                f"got {config.block_size}"
            )
        return FlashOps.on(device)
    if backend == "reference" or (backend == "auto" and is_exact and device.type != "cpu"):
        return ReferenceOps()
    if device.type != "cpu":
        raise ValueError(f"backend cpu cannot sample on {device}")
    if isinstance(before, CpuOps) and before.serves(num_rows):
        before.refresh()
        return before
    library = kernels()
    if library is not None:
        return CpuOps(library, num_rows, config.precision)
    if backend == "cpu" or not is_exact:
        raise ValueError("backend cpu needs a C compiler (the warning above says what failed)")
    return ReferenceOps()
