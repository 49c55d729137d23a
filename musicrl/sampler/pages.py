"""Zeros in large pages of memory, where the system has them.

Attention reads all of a cache in every step: with pages of 4 kB, looking up where they lie is a tenth
of it. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

LARGE = 2**22
"""Bytes from which on large pages are asked for."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Of main memory that nobody has used yet."""
    size = prod(shape) * dtype.itemsize
    if size < LARGE or sys.platform != "linux":
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
