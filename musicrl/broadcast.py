"""Broadcasts of weights: one process sends every version to those that listen, by a collective.

    publish ─► announce ─► all answer? ─► go ─► broadcast ─► verified, kept until it is asked for
                              │ no                 │ failed
                              └────── this version is not sent; who is absent is named ──────┘

They meet at a store that the sender keeps. Who listens there is of the next generation: one process
group of the sender and all of them, made again whenever they change. Nobody waits beyond a deadline,
and a version that did not arrive has another way (Ray's object store has every version). It knows
tensors and process groups, no actor. `musicrl.listener` is the other end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor
from torch._C._distributed_c10d import Backend, BroadcastOptions, PrefixStore, Store, Work

from musicrl.ranks import make_gloo, open_store
from musicrl.types import Weights

Kind = Literal["gloo", "nccl"]
Address = tuple[str, int]
"""Of the store."""
MEMBERS, TURNS = "members", "turns"
"""Counters of the store: listeners that ever came, and versions that were announced."""
GO, NO, MISSED = "go", "no", "missed"
POLL_SECONDS = 0.001
KEPT_TURNS = 2
"""Announcements that stay for those who are late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is announced of a version."""

    version: int
    index: tuple[tuple[str, tuple[int, ...]], ...]
    scale: float | None
    checksum: str
    size: int
    """Numbers of the buffer."""
    generation: int
    members: tuple[int, ...]
    """Who is to take part, in the order of ranks from 1 on."""
    num_known: int
    """Listeners that had come: one of these that is no member is out."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> Header:
        found = json.loads(text)
        index = tuple((name, tuple(shape)) for name, shape in found.pop("index"))
        return Header(index=index, members=tuple(found.pop("members")), **found)


class Broadcaster:
    """The sender."""

    def __init__(
        self, host: str, *, kind: Kind, device: torch.device, timeout_seconds: float
    ) -> None:
        """Listens on the address `host` only; buffers travel from `device` where nccl sends them."""
        self._host, self._kind = host, kind
        self._device = device if kind == "nccl" else torch.device("cpu")
        self._timeout_seconds = timeout_seconds
        self._store = open_store(host, timeout_seconds)
        self._members: dict[int, str] = {}
        self._num_known = self._turn = self._generation = 0
        self._joined: tuple[int, ...] = ()
        self._group: Backend | None = None

    @property
    def address(self) -> Address:
        return self._host, self._store.port

    def publish(self, weights: Weights, *, without: Collection[str] = ()) -> list[str]:
        """Send a version to all that listen, `without` those who are known to be away; a sentence for
        each that missed it.

        Blocks for a few deadlines at most: of the answers, of the group and its broadcast, and of the
        words of those who took part in one that failed.
        """
        self._welcome()
        self._members = {m: name for m, name in self._members.items() if name not in without}
        if not self._members:
            return []
        members = tuple(self._members)
        if self._joined != members:
            self._joined, self._group = members, None
            self._generation += 1
        self._announce(weights)
        absent = self._without("ready", GO)
        self._store.set(self._key("go"), NO if absent else GO)
        missed = [self._sentence(member, weights) for member in absent]
        if not absent and not self._send(weights):
            silent = self._without("done", GO, NO)
            missed = [self._sentence(member, weights) for member in silent]
            missed = missed or [f"the broadcast of version {weights.version} failed"]
            absent, self._group = [*members], None  # they come anew
        for member in absent:
            del self._members[member]
        self._turn += 1
        return missed

    def _welcome(self) -> None:
        """Whoever came since the last time; who comes anew is one."""
        num_known = self._store.add(MEMBERS, 0)
        until = time.monotonic() + self._timeout_seconds
        for member in range(self._num_known + 1, num_known + 1):
            name = self._hear(f"member/{member}", until)
            if name is not None:
                self._members = {m: n for m, n in self._members.items() if n != name}
                self._members[member] = name
        self._num_known = num_known

    def _announce(self, weights: Weights) -> None:
        header = Header(
            version=weights.version,
            index=weights.index,
            scale=weights.scale,
            checksum=weights.checksum,
            size=weights.flat.size,
            generation=self._generation,
            members=self._joined,
            num_known=self._num_known,
        )
        self._store.set(self._key("turn"), header.to_json())
        self._store.add(TURNS, 1)
        old = self._turn - KEPT_TURNS
        words = [f"{word}/{old}/{member}" for word in ("ready", "done") for member in self._joined]
        for key in (f"go/{old}", *words):
            self._store.delete_key(key)
        if old >= 0:
            self._store.set(f"turn/{old}", MISSED)

    def _without(self, word: str, *wanted: str) -> list[int]:
        """Members who do not say one of the wanted words within the deadline."""
        until = time.monotonic() + self._timeout_seconds
        keys = {member: f"{self._key(word)}/{member}" for member in self._joined}
        return [m for m, key in keys.items() if self._hear(key, until) not in wanted]

    def _hear(self, key: str, until: float) -> str | None:
        left = max(0.0, until - time.monotonic())
        return self._store.get(key).decode() if said(self._store, key, left) else None

    def _send(self, weights: Weights) -> bool:
        """Whether the broadcast came to its end here."""
        flat = torch.from_numpy(weights.flat).to(self._device)
        timeout = timedelta(seconds=self._timeout_seconds)
        try:
            if self._group is None:
                place = self._store, self._generation, self._host, timeout
                self._group = make_group(self._kind, 0, len(self._joined) + 1, *place)
            broadcast(self._group, flat, timeout)
        except RuntimeError:  # all that a group raises whose member has gone or is late
            return False
        return True

    def _key(self, word: str) -> str:
        return f"{word}/{self._turn}"

    def _sentence(self, member: int, weights: Weights) -> str:
        return (
            f"{self._members[member]} took no part in the broadcast of version {weights.version} "
            f"within {self._timeout_seconds:g} s (cluster.weights_timeout_seconds)"
        )


def said(store: Store, key: str, seconds: float) -> bool:
    """Whether a store has a key, or gets it within so many seconds."""
    if seconds <= 0 or store.check([key]):
        return store.check([key])
    try:
        store.wait([key], timedelta(seconds=seconds))
    except RuntimeError:  # of a store that is gone, the next call raises it again
        return store.check([key])
    return True


def make_group(
    kind: Kind,
    rank: int,
    size: int,
    store: Store,
    generation: int,
    host: str,
    timeout: timedelta,
) -> Backend:
    """Of one generation. Raises RuntimeError when somebody does not come."""
    place = PrefixStore(f"generation/{generation}", store)
    if kind == "gloo":
        return make_gloo(place, rank, size, host, timeout)
    from torch._C._distributed_c10d import ProcessGroupNCCL  # a build for GPUs has it

    options = ProcessGroupNCCL.Options()
    options._timeout = 10 * timeout  # its own watchdog ends the process: `broadcast` is to be first
    return ProcessGroupNCCL(place, rank, size, options)


def broadcast(group: Backend, flat: Tensor, timeout: timedelta) -> None:
    """Fill everybody's buffer with that of rank 0. Raises RuntimeError when somebody is late."""
    options = BroadcastOptions()
    options.rootRank, options.timeout = 0, timeout
    work = group.broadcast([flat], options)  # type: ignore[attr-defined]  # the stubs lack it
    if flat.is_cuda:
        _await_device(group, work, timeout.total_seconds())
    work.wait(timeout)


def _await_device(group: Backend, work: Work, seconds: float) -> None:
    """A wait for nccl ends when the kernel is queued, and not when it is done."""
    until = time.monotonic() + seconds
    while not work.is_completed():
        if time.monotonic() > until:
            group.abort()  # else the kernel waits for ever
            raise RuntimeError(f"a broadcast was not done within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def find_kind(learner_gpus: float, sampler_gpus: float) -> Kind:
    """nccl where all have GPUs of their own: it allows one process on each."""
    return "nccl" if min(learner_gpus, sampler_gpus) >= 1 else "gloo"
