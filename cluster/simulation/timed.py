"""A store with a stopwatch: how long the controller itself is at work between two waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from cluster.supervise import Store


@dataclass(slots=True)
class TimedStore:
    """A `cluster.supervise.Store` around another; calls of `remote` count as the controller's work,
    since they are."""

    store: Store
    clock: Callable[[], float] = perf_counter
    seconds: list[float] = field(default_factory=list)
    """Of the controller's own work, between one wait for whatever comes and the next."""
    _own: float = 0.0
    _left: float | None = None
    """When the last call returned."""

    def wait(
        self, refs: list[Any], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]:
        """As the other's; one that may block ends a cycle."""
        self._enter()
        if timeout > 0:
            self.seconds.append(self._own)
            self._own = 0.0
        found = self.store.wait(
            refs, num_returns=num_returns, timeout=timeout, fetch_local=fetch_local
        )
        self._left = self.clock()
        return found

    def get(self, ref: Any, *, timeout: float) -> Any:
        """As the other's."""
        self._enter()
        value = self.store.get(ref, timeout=timeout)
        self._left = self.clock()
        return value

    def _enter(self) -> None:
        if self._left is not None:
            self._own += self.clock() - self._left
