"""Actors that do the same work: who is idle, in the order in which they became so."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An actor and what people call it ("sampler 1")."""

    name: str
    actor: Any
    """Its handle."""


class Pool:
    """Each peer works on one task at a time."""

    def __init__(self, peers: Iterable[Peer]) -> None:
        self._idle = deque(peers)
        self.size = len(self._idle)
        """Peers that are idle, at work or restarting."""

    @property
    def is_idle(self) -> bool:
        """Whether anyone can take a task now."""
        return bool(self._idle)

    def take(self) -> Peer:
        return self._idle.popleft()

    def give(self, peer: Peer) -> None:
        """A peer has finished its task."""
        self._idle.append(peer)

    def add(self, peer: Peer) -> None:
        """One more peer, idle."""
        self.size += 1
        self._idle.append(peer)

    def drop(self, peer: Peer) -> None:
        """A peer that was taken will not come back. Raises ConnectionError for the last one."""
        self.size -= 1
        if not self.size:
            raise ConnectionError(f"{peer.name} is gone, and no other can do its work")
