"""torch's own routine for small products of bfloat16 matrices with float32 sums, found by its name.

It reads weights that were laid out for it once, where the routines that libraries offer for whole
matrices lay them out in every call, which takes longer than multiplying them. It knows names and
addresses, and what the processor multiplies.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_bool, c_int8, c_int64, c_void_p
from typing import NamedTuple

import torch

NAMES = (
    "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
    "_ZN2at6native7cpublas14brgemm_releaseEb",
    "_ZN2at6native7cpublas10could_packEN3c1010ScalarTypeE",
)
"""C++'s names of `at::native::cpublas::brgemm` for bfloat16, of `brgemm_release` and of `could_pack`,
which says whether weights that are laid out beforehand are what is fast on this processor, with the
instructions that the user lets oneDNN have."""
BFLOAT16 = 15
"""torch's number of the type."""


class TileRoutine(NamedTuple):
    """Two addresses."""

    multiply: int
    release: int
    """What each thread that has multiplied calls afterwards."""


@functools.cache
def tile_routine() -> TileRoutine | None:
    """None where there is no such routine, where it computes something else, or where the processor
    multiplies no whole tiles of bfloat16, which is what makes it fast."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        library = ctypes.CDLL(torch._C.__file__)
        multiply, release, could_pack = (getattr(library, name) for name in NAMES)
    except (OSError, AttributeError):
        return None
    could_pack.argtypes, could_pack.restype = [c_int8], c_bool
    multiply.argtypes = [*[c_int64] * 6, c_bool, *[c_void_p] * 3, c_bool]
    release.argtypes = [c_bool]
    multiply.restype = release.restype = None
    if not could_pack(BFLOAT16) or not _is_right(multiply, release):
        return None
    addresses = (ctypes.cast(each, c_void_p).value or 0 for each in (multiply, release))
    return TileRoutine(*addresses)


def has_bfloat16_products() -> bool:
    """Whether oneDNN multiplies in bfloat16 here: the processor must have instructions for it."""
    is_there = torch.backends.mkldnn.is_available()
    return is_there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_right(multiply: ctypes._FuncPointer, release: ctypes._FuncPointer) -> bool:
    """Whether it gives whole numbers that have one answer."""
    rows, inputs, outputs = 16, 32, 32
    x = (torch.arange(rows * inputs) % 7 - 3).view(rows, inputs).bfloat16()
    weight = (torch.arange(outputs * inputs) % 5 - 2).view(outputs, inputs).bfloat16()
    found = torch.zeros(rows, outputs)
    packed = weight.unflatten(1, (-1, 2)).transpose(0, 1).contiguous()  # [I / 2, O, 2]
    data = x.data_ptr(), packed.data_ptr(), found.data_ptr()
    multiply(rows, outputs, inputs, inputs, outputs, outputs, False, *data, True)
    release(True)
    return torch.equal(found, x.float() @ weight.float().T)
