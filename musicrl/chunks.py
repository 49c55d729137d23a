"""Rows that are worked on a few at a time, so that what is made of them on the way never leaves the
processor's cache: memory is what passes over a vocabulary wait for."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK = 2**17
"""Numbers of a tensor at once: half a megabyte of float32."""


def chunks(x: Tensor) -> Iterator[slice]:
    """The rows of x [N, W], some at a time; all at once where a GPU has its own way to do so."""
    size = max(1, CHUNK // max(1, x.shape[1])) if x.device.type == "cpu" else max(1, len(x))
    return (slice(start, start + size) for start in range(0, len(x), size))
