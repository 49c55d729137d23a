"""Large pages: zeros like any others, given back with the last tensor that reads them."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch

from musicrl.sampler.pages import LARGE, zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 1000, LARGE // 8])
def test_they_are_zeros_that_can_be_written(count: int, dtype: torch.dtype) -> None:
    found = zeros((2, count, 3), dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, torch.zeros(2, count, 3, dtype=dtype))
    found[1] += 1
    assert found.float().sum() == 3 * count


def mapped() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc here")
def test_memory_is_given_back() -> None:
    size, before = 2**30, mapped()
    part = zeros((2**28,), torch.float32)[5:6]
    gc.collect()
    assert mapped() >= before + size
    assert part.item() == 0
    del part
    gc.collect()
    assert mapped() < before + size // 2
