"""The product of bfloat16 matrices with float32 sums in the linear algebra library that torch carries.

torch calls that library for float32 alone; its routine for bfloat16 is there too, and costs a call
less than a tenth of what reaching oneDNN through torch does. It knows names and addresses.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_char_p, c_float, c_int64, c_void_p

import torch

NAME = "GEMM_BF16BF16F32"
"""FORTRAN's name of the routine in Intel's library."""


@functools.cache
def rounded_product() -> int | None:
    """Its address; None where there is no such routine, where it computes something else, or where
    the processor multiplies no whole tiles of bfloat16, which is what makes it fast."""
    if not torch.backends.mkl.is_available() or not torch.cpu._is_amx_tile_supported():
        return None
    try:
        routine = getattr(ctypes.CDLL(torch._C.__file__), NAME)
    except (OSError, AttributeError):
        return None
    address = ctypes.cast(routine, c_void_p).value
    return address if _is_right(routine) else None


def _is_right(routine: ctypes._FuncPointer) -> bool:
    """Whether it gives whole numbers that have one answer."""
    rows, inputs, outputs = 3, 32, 48
    x = (torch.arange(rows * inputs) % 7 - 3).view(rows, inputs).bfloat16()
    weight = (torch.arange(outputs * inputs) % 5 - 2).view(outputs, inputs).bfloat16()
    found = torch.ones(rows, outputs)
    m, n, k = (byref(c_int64(count)) for count in (outputs, rows, inputs))
    one = byref(c_float(1.0))
    routine(
        *(c_char_p(b"T"), c_char_p(b"N"), m, n, k),
        *(one, c_void_p(weight.data_ptr()), k, c_void_p(x.data_ptr()), k),
        *(one, c_void_p(found.data_ptr()), m),
    )
    return torch.equal(found, x.float() @ weight.float().T + 1)
