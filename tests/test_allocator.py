"""The C library's memory, in a process of its own: what it is told holds for the whole process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from musicrl.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
sizes = 2**24, 2**24 - 2**20, 2**23
for size in sizes * 12:  # until blocks of all sizes have found their places
    torch.ones(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in sizes:
    torch.ones(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Pages that a process touches for the first time when it asks again for blocks it has freed."""
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_blocks_are_used_again() -> None:
    assert faults("kept") < faults("given back") / 10
