"""The replay: rollouts that wait for the learner, as references, bounded in count and in age.

A slot is one prompt. There are (max_lag + 1) x prompts_per_step of them; a chunk takes its slots
before it is sampled and gives them back when the version trained on it has been published. So a
sampler can never be more than `max_lag` versions ahead of what the learner will want, and
`max_lag` 0 is the synchronous loop. The store of objects itself is no bound: it spills to disk.

    reserve ──► (sampled, scored) ──► put ──► take ──► release
       ▲                               │        │
       └────── evict (too old) ◄───────┘        │
       └────── remake (bytes lost) ◄────────────┘

    reserve ──► split (into single prompts) ──► drop (those that nobody can make)

It holds references and never looks inside them; it knows nothing of Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from musicrl.rollout import Chunk

Key = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A chunk that is ready to be trained on."""

    chunk: Chunk
    rollouts: Any
    """Reference to Rollouts."""
    rewards: Any
    """Reference to RewardBatch."""
    version: int
    """Of the weights that sampled it."""
    num_bytes: int
    """Of the rollouts (the audio has been dropped by now)."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of work that went into it, by phase."""


class Replay:
    """Slots, and the entries that fill them, in the order of (step, chunk)."""

    def __init__(self, *, prompts_per_step: int, max_lag: int) -> None:
        if prompts_per_step < 1 or max_lag < 0:
            raise ValueError(
                "prompts_per_step must be 1 or more and max_lag 0 or more, "
                f"got {prompts_per_step} and {max_lag}"
            )
        self.prompts_per_step = prompts_per_step
        self.max_lag = max_lag
        self.capacity = (max_lag + 1) * prompts_per_step
        self._reserved: dict[Key, Chunk] = {}
        self._ready: dict[Key, Entry] = {}
        self._taken: dict[Key, Entry] = {}
        self._num_dropped: Counter[int] = Counter()
        self.num_slots_used = 0
        self._num_ready: Counter[int] = Counter()
        """Prompts that are ready, by step."""
        self._versions: Counter[int] = Counter()
        """Entries that are ready, by the version of their weights."""

    @property
    def num_bytes(self) -> int:
        """Bytes of rollouts that the held references keep alive."""
        return sum(entry.num_bytes for entry in self._entries())

    def has_room(self, num_prompts: int) -> bool:
        return self.num_slots_used + num_prompts <= self.capacity

    def reserve(self, chunk: Chunk) -> None:
        """Take the slots of a chunk that is about to be sampled.

        Raises ValueError when there is no room or the chunk is already here.
        """
        if not self.has_room(len(chunk.prompts)):
            raise ValueError(f"no room for {chunk}: {self.num_slots_used} of {self.capacity} used")
        if self._is_held(chunk.key):
            raise ValueError(f"{chunk} is already in the replay")
        self._reserved[chunk.key] = chunk
        self.num_slots_used += len(chunk.prompts)

    def put(self, entry: Entry) -> None:
        """Fill reserved slots. Raises ValueError when they were not reserved."""
        if self._reserved.pop(entry.chunk.key, None) is None:
            raise ValueError(f"{entry.chunk} was put without a reservation")
        self._ready[entry.chunk.key] = entry
        self._count_ready(entry, 1)

    def split(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """Reserve the prompts of a reserved chunk one by one in its place."""
        del self._reserved[chunk.key]
        parts = chunk.parts()
        self._reserved.update({part.key: part for part in parts})
        return parts

    def drop(self, chunk: Chunk) -> None:
        """Give up a reserved chunk: its step is whole without it, and keeps its slots all the same,
        so that no later step comes early."""
        del self._reserved[chunk.key]
        self._num_dropped[chunk.step] += len(chunk.prompts)

    def num_prompts(self, step: int) -> int:
        """Prompts that a step is made of."""
        return self.prompts_per_step - self._num_dropped[step]

    def evict(self, version: int) -> tuple[Chunk, ...]:
        """Drop the entries that are too old for a learner at `version`; their slots stay reserved.

        Returned in order, to be made again with newer weights.
        """
        if not any(self._is_old(sampled, version) for sampled in self._versions):
            return ()
        old = sorted(k for k, e in self._ready.items() if self._is_old(e.version, version))
        for key in old:
            self._count_ready(self._ready[key], -1)
        return tuple(self._back_to_reserved(self._ready, key) for key in old)

    def take(self, step: int, version: int) -> tuple[Entry, ...]:
        """All entries of `step`, by chunk, for a learner at `version`; empty when any is missing.

        Never older than `max_lag` versions: such an entry counts as missing until it is evicted.
        """
        if self._num_ready[step] != self.num_prompts(step):
            return ()
        keys = sorted(key for key in self._ready if key[0] == step)
        entries = [self._ready[key] for key in keys]
        if any(self._is_old(entry.version, version) for entry in entries):
            return ()
        for key in keys:
            self._count_ready(self._ready[key], -1)
            self._taken[key] = self._ready.pop(key)
        return tuple(entries)

    def release(self, step: int) -> None:
        """Free the slots of a step that was trained on, once its weights are published."""
        for key in [key for key in self._taken if key[0] == step]:
            self.num_slots_used -= len(self._taken.pop(key).chunk.prompts)
        self.num_slots_used -= self._num_dropped.pop(step, 0)

    def remake(self, step: int) -> tuple[Chunk, ...]:
        """Put the taken entries of `step` back to reserved: their bytes were lost."""
        lost = sorted(key for key in self._taken if key[0] == step)
        return tuple(self._back_to_reserved(self._taken, key) for key in lost)

    def check_integrity(self) -> None:
        """Assert that every chunk is in one state, that the counts are those of what is held and
        that the slots in use fit the capacity."""
        states = [set(self._reserved), set(self._ready), set(self._taken)]
        assert sum(map(len, states)) == len(set.union(*states)), "a chunk is held twice"
        chunks = [*self._reserved.values(), *(e.chunk for e in self._entries())]
        num_prompts = sum(len(chunk.prompts) for chunk in chunks) + self._num_dropped.total()
        assert num_prompts == self.num_slots_used <= self.capacity, "more slots in use than exist"
        ready: Counter[int] = Counter()
        for entry in self._ready.values():
            ready[entry.chunk.step] += len(entry.chunk.prompts)
        assert ready == self._num_ready, "prompts are ready that are not held"
        assert self._versions == Counter(e.version for e in self._ready.values())

    def _is_old(self, sampled: int, version: int) -> bool:
        return version - sampled > self.max_lag

    def _count_ready(self, entry: Entry, sign: int) -> None:
        step = entry.chunk.step
        self._num_ready[step] += sign * len(entry.chunk.prompts)
        self._versions[entry.version] += sign
        for counts, key in ((self._num_ready, step), (self._versions, entry.version)):
            if not counts[key]:
                del counts[key]

    def _entries(self) -> list[Entry]:
        return [*self._ready.values(), *self._taken.values()]

    def _is_held(self, key: Key) -> bool:
        return key in self._reserved or key in self._ready or key in self._taken

    def _back_to_reserved(self, state: dict[Key, Entry], key: Key) -> Chunk:
        chunk = state.pop(key).chunk
        self._reserved[key] = chunk
        return chunk
