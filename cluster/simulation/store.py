"""The store of a simulation: references that get their values as virtual time passes.

It answers as Ray does to `cluster.supervise`: waiting takes virtual time and no other.
"""

from __future__ import annotations

import math
from typing import Any

from cluster.simulation.timeline import Timeline


class Reference:
    """A return of a task."""

    __slots__ = ("is_ready", "value")

    def __init__(self) -> None:
        self.is_ready, self.value = False, None

    def fill(self, value: Any) -> None:
        self.is_ready, self.value = True, value


class VirtualStore:
    """What `cluster.supervise.Store` asks for."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline

    def wait(
        self, refs: list[Any], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]:
        """As `ray.wait`."""
        until = self.timeline.now + timeout
        ready = [ref for ref in refs if ref.is_ready]
        while len(ready) < num_returns and timeout > 0 and self.timeline.advance(until):
            ready = [ref for ref in refs if ref.is_ready]
        return ready, [ref for ref in refs if not ref.is_ready]

    def get(self, ref: Any, *, timeout: float) -> Any:
        """As `ray.get`. Raises RuntimeError where nothing is under way that could fill it."""
        while not ref.is_ready:
            if not self.timeline.advance(math.inf):
                raise RuntimeError("a reference that no task will ever fill")
        return ref.value
