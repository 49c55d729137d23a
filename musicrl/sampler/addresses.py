"""Where the numbers of a tensor lie, for C."""

from __future__ import annotations

import torch
from torch import Tensor


def address(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Of what C reads: dense numbers of one type. Raises ValueError for others."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"a kernel needs dense {dtype}, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.data_ptr()
