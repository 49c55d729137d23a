"""Listeners to broadcasts of weights: a thread that has the newest version at hand.

    announced ─► answered ─► received into a spare buffer ─► verified ─► swapped for the one before

It works beside whatever its process does, and changes no policy: that asks for a version between
two batches, and gets all of it or nothing. Who missed a version, or came late, comes anew. It knows
the store at which `musicrl.broadcast` announces, and no actor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Condition, Event, Thread

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._distributed_c10d import Backend, TCPStore

from musicrl.broadcast import (
    GO,
    MEMBERS,
    MISSED,
    NO,
    TURNS,
    Address,
    Header,
    Kind,
    broadcast,
    make_group,
    said,
)
from musicrl.policies.flat import checksum
from musicrl.ranks import find_store
from musicrl.types import Weights

POLL_SECONDS = 600.0
"""Of one wait for an announcement; torch logs a line when it has passed."""


NUM_WAITS = 4
"""Deadlines of a broadcast that follow each other: of the word to go (two), the group, its data."""


class Listener(Thread):
    """Ends when its store is gone, or it is told to `stop`."""

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        host: str,
        kind: Kind,
        device: torch.device,
        timeout_seconds: float,
    ) -> None:
        """`name` is what others call it; it listens on the address `host` only."""
        super().__init__(name=name, daemon=True)
        self.address = address
        self.arrived = Event()
        """Set once the sender can know of it, or there is none."""
        self._host, self._kind = host, kind
        self._device = device if kind == "nccl" else torch.device("cpu")
        self._timeout = timedelta(seconds=timeout_seconds)
        self._changed = Condition()
        self._is_stopped = self._is_lent = False
        self._receiving: int | None = None
        self._latest: Weights | None = None
        self._spare: NDArray[np.float32] | None = None
        self._generation: int | None = None
        self._group: Backend | None = None

    def stop(self) -> None:
        self._is_stopped = True

    @contextmanager
    def held(self, version: int) -> Iterator[Weights | None]:
        """The weights of a version, good while this is open; None when they have not come. What is under
        way is waited for, as long as its deadlines together allow."""
        longest = NUM_WAITS * self._timeout.total_seconds()
        with self._changed:
            self._changed.wait_for(lambda: self._receiving != version, longest)
            self._is_lent = self._has(version)
        try:
            yield self._latest if self._is_lent else None
        finally:
            with self._changed:
                self._is_lent = False
                self._changed.notify_all()

    def _has(self, version: int) -> bool:
        return self._latest is not None and self._latest.version == version

    def run(self) -> None:
        try:
            seconds = self._timeout.total_seconds()
            store = find_store(*self.address, seconds)
            while not self._is_stopped:
                self._attend(store)
        except (ConnectionError, RuntimeError):
            self._note(None)  # the sender is gone: weights come another way until there is another
        finally:
            self.arrived.set()

    def _attend(self, store: TCPStore) -> None:
        """Take part under one number, from the next announcement on, until it is of no use."""
        turn, member = store.add(TURNS, 0), store.add(MEMBERS, 1)
        store.set(f"member/{member}", self.name)
        self.arrived.set()
        while not self._is_stopped:
            if not said(store, f"turn/{turn}", POLL_SECONDS):
                continue
            announced = store.get(f"turn/{turn}").decode()
            if announced == MISSED:
                return
            header = Header.parse(announced)
            if member in header.members:
                if not self._take_part(store, turn, member, header):
                    store.set(f"ready/{turn + 1}/{member}", NO)
                    return
            elif member <= header.num_known:
                return
            turn += 1

    def _take_part(self, store: TCPStore, turn: int, member: int, header: Header) -> bool:
        """Whether the group is still of use."""
        self._note(header.version)
        store.set(f"ready/{turn}/{member}", GO)
        try:
            is_on = said(store, f"go/{turn}", 2 * self._timeout.total_seconds())
            if not is_on or store.get(f"go/{turn}").decode() != GO:
                return is_on
            flat = self._receive(store, member, header)
            store.set(f"done/{turn}/{member}", NO if flat is None else GO)
            if flat is not None:
                self._keep(header, flat)
            return flat is not None
        finally:
            self._note(None)

    def _receive(self, store: TCPStore, member: int, header: Header) -> NDArray[np.float32] | None:
        """What was sent; None when the broadcast failed."""
        flat = self._spare
        if flat is None or flat.size != header.size:
            flat = np.empty(header.size, np.float32)
        buffer = torch.from_numpy(flat).to(self._device)
        try:
            if self._group is None or self._generation != header.generation:
                rank, size = 1 + header.members.index(member), 1 + len(header.members)
                place = store, header.generation, self._host, self._timeout
                self._group = make_group(self._kind, rank, size, *place)
                self._generation = header.generation
            broadcast(self._group, buffer, self._timeout)
        except RuntimeError:  # all that a group raises whose member has gone or is late
            self._group = None
            return None
        return buffer.cpu().numpy()

    def _keep(self, header: Header, flat: NDArray[np.float32]) -> None:
        """Have the version at hand, if it is what was sent."""
        weights = Weights(
            version=header.version,
            flat=flat,
            index=header.index,
            scale=header.scale,
            checksum=header.checksum,
        )
        if checksum(weights) != weights.checksum:
            self._spare = flat
            return
        with self._changed:
            while self._is_lent:
                self._changed.wait()
            self._spare = None if self._latest is None else self._latest.flat
            self._latest = weights

    def _note(self, version: int | None) -> None:
        """What is being received."""
        with self._changed:
            self._receiving = version
            self._changed.notify_all()
