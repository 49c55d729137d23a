"""Progress of a loop: rich's bar on a terminal, a line now and then elsewhere; both say what is left.

Knows nothing of what the loop does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

import rich
from rich.progress import track as track_on_terminal

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


def track(items: Iterable[Item], *, description: str, total: int | None = None) -> Iterator[Item]:
    """The items as they are; `total` where they have no length of their own."""
    if rich.get_console().is_terminal:
        yield from track_on_terminal(items, description=description, total=total)
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    started = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            print(line(description, done, total, now - started), flush=True)


def line(description: str, done: int, total: int | None, seconds: float) -> str:
    """How far a loop is after `seconds`."""
    if total is None:
        return f"{description}: {done}"
    left = seconds / done * (total - done)
    return f"{description}: {done} of {total}, about {left:.0f} s left"
