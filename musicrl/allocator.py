"""How this process's C library gives out memory: what is freed stays, for the next who asks.

glibc asks the kernel anew for every block above 32 MB and gives back what lies free at the end of its
heap; a learner's temporaries are as large and live as long as one operation, so that most of an update
is spent on pages that the kernel clears. Knows nothing of tensors.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of glibc's mallopt."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep what is freed, of any size, until the process ends; whether the C library can be told so.

    The most memory that the process has at once grows by what its largest blocks leave unused between
    them (1 % on a decoder of 2.6M parameters). This project's choice.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    told = [tell(_MMAP_MAX, 0), tell(_TRIM_THRESHOLD, _NEVER)]
    return all(told)
