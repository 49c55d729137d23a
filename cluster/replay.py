"""The replay: rollouts that wait for the learner, as references, bounded in count, bytes and age.

A slot is one prompt. A chunk takes its slots before it is sampled and gives them back when the
version that trained on it for the last time has been published. Rounds of `prompts_per_step` prompts
are sampled one after another, and there are slots for (max_lag + 1) / reuse of them: so a sampler
can never be more than `max_lag` versions ahead of what the learner will want, and `max_lag` 0 is the
synchronous loop. Samplers wait rather than that anything is thrown away. The store of objects itself
is no bound: it spills to disk.

    reserve ──► (sampled, scored) ──► put ──► take ──► release ──► (gone)
       ▲                              ▲ │      │          │
       └────── evict (too old) ◄──────┼─┘      │          │
       └────── remake (bytes lost) ◄──┼────────┘          │
                                      └── (used again) ◄──┘

    reserve ──► split (into single prompts) ──► drop (those that nobody can make)

It holds references and never looks inside them; it knows nothing of Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musicrl.config import ReplayConfig
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
    priority: float = 0.0
    """Mean |advantage| of its samples."""


class Replay:
    """Slots, and the entries that fill them."""

    def __init__(
        self,
        *,
        prompts_per_step: int,
        max_lag: int,
        config: ReplayConfig | None = None,
        seed: int = 0,
        first_step: int = 0,
    ) -> None:
        """For a learner that begins at `first_step`, in the middle of the uses of a round perhaps.
        The `seed` is that of the draws where the order is not first in, first out."""
        if prompts_per_step < 1 or max_lag < 0:
            raise ValueError(
                "prompts_per_step must be 1 or more and max_lag 0 or more, "
                f"got {prompts_per_step} and {max_lag}"
            )
        self.config = config or ReplayConfig()
        self.prompts_per_step = prompts_per_step
        self.max_lag = max_lag
        num_rounds = (max_lag + 1) // self.config.reuse
        if not self.is_fifo:
            num_rounds = max(
                num_rounds, 2
            )  # what is left of one is no step, and must not block one
        self.capacity = num_rounds * prompts_per_step
        self.num_slots_used = 0
        self._seed, self._first_step = seed, first_step
        self._reserved: dict[Key, Chunk] = {}
        self._ready: dict[Key, Entry] = {}
        self._taken: dict[Key, Entry] = {}
        self._uses: Counter[Key] = Counter()
        """Steps that trained on each held chunk."""
        self._num_dropped: Counter[int] = Counter()
        self._num_ready: Counter[int] = Counter()
        """Prompts that are ready, by round."""
        self._versions: Counter[int] = Counter()
        """Entries that are ready, by the version of their weights."""
        self._bytes_per_prompt = 0.0

    @property
    def is_fifo(self) -> bool:
        """Whether each round is trained on as a whole, in order."""
        return self.config.order == "fifo"

    @property
    def num_bytes(self) -> int:
        """Bytes of rollouts that the held references keep alive."""
        return sum(entry.num_bytes for entry in self._entries())

    def is_enough_for(self, num_steps: int) -> bool:
        """Whether the held chunks can give prompts to so many more steps, the current one
        included: each step takes a chunk once."""
        chunks = [*self._reserved.values(), *(entry.chunk for entry in self._entries())]
        uses = sum(len(c.prompts) * (self.config.reuse - self._uses[c.key]) for c in chunks)
        least = min(num_steps, 1) * self.prompts_per_step
        return self.num_slots_used >= least and uses >= num_steps * self.prompts_per_step

    def has_room(self, num_prompts: int) -> bool:
        """Whether the slots, and the bytes that are to be expected, allow so many more prompts. What
        one step needs always has room."""
        if self.num_slots_used + num_prompts > self.capacity:
            return False
        budget = self.config.max_bytes
        if budget is None or not self.num_slots_used:
            return True
        coming = sum(len(chunk.prompts) for chunk in self._reserved.values()) + num_prompts
        return self.num_bytes + coming * self._bytes_per_prompt <= budget

    def reserve(self, chunk: Chunk) -> None:
        """Take the slots of a chunk that is about to be sampled.

        Raises ValueError when there is no room or the chunk is already here.
        """
        if not self.num_slots_used + len(chunk.prompts) <= self.capacity:
            raise ValueError(f"no room for {chunk}: {self.num_slots_used} of {self.capacity} used")
        if self._is_held(chunk.key):
            raise ValueError(f"{chunk} is already in the replay")
        self._reserved[chunk.key] = chunk
        self.num_slots_used += len(chunk.prompts)
        if chunk.step == self._first_step // self.config.reuse:
            self._uses[chunk.key] = self._first_step % self.config.reuse

    def put(self, entry: Entry) -> None:
        """Fill reserved slots. Raises ValueError when they were not reserved, or when one step's
        rollouts are more than the budget of bytes."""
        if self._reserved.pop(entry.chunk.key, None) is None:
            raise ValueError(f"{entry.chunk} was put without a reservation")
        per_prompt = entry.num_bytes / len(entry.chunk.prompts)
        self._bytes_per_prompt = max(self._bytes_per_prompt, per_prompt)
        self._check_budget()
        self._ready[entry.chunk.key] = entry
        self._count_ready(entry, 1)

    def _check_budget(self) -> None:
        needed, budget = self._bytes_per_prompt * self.prompts_per_step, self.config.max_bytes
        if budget is not None and needed > budget:
            raise ValueError(
                f"replay.max_mb {self.config.max_mb:g} is less than the rollouts of one step, "
                f"{needed / 1e6:.3g} MB of {self.prompts_per_step} prompts"
            )

    def split(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """Reserve the prompts of a reserved chunk one by one in its place."""
        del self._reserved[chunk.key]
        parts, uses = chunk.parts(), self._uses.pop(chunk.key, 0)
        for part in parts:
            self._reserved[part.key] = part
            self._uses[part.key] = uses
        return parts

    def drop(self, chunk: Chunk) -> None:
        """Give up a reserved chunk. Where rounds are trained on as a whole, its round is whole
        without it, and keeps its slots all the same, so that no later round comes early."""
        del self._reserved[chunk.key]
        self._uses.pop(chunk.key, None)
        self._num_dropped[chunk.step] += len(chunk.prompts)
        if not self.is_fifo:
            self.num_slots_used -= len(chunk.prompts)

    def num_prompts(self, round_: int) -> int:
        """Prompts that a round is made of, without those that were dropped."""
        return self.prompts_per_step - self._num_dropped[round_]

    def evict(self, version: int) -> tuple[Chunk, ...]:
        """Drop the entries that are too old for a learner at `version`; the slots of those that it
        has never trained on, or of whose round it still will, stay reserved.

        These are returned in order, to be made again with newer weights.
        """
        if not any(self._is_old(sampled, version) for sampled in self._versions):
            return ()
        old = sorted(k for k, e in self._ready.items() if self._is_old(e.version, version))
        for key in old:
            self._count_ready(self._ready[key], -1)
            if self._uses[key] and not self.is_fifo:
                self._free(self._ready.pop(key))
        return tuple(self._back_to_reserved(self._ready, k) for k in old if k in self._ready)

    def take(self, version: int) -> tuple[Entry, ...]:
        """The entries of the next step of a learner at `version`, by chunk; empty when there are too
        few. Never older than `max_lag` versions."""
        keys = self._whole_round(version) if self.is_fifo else self._draw(version)
        for key in keys:
            self._count_ready(self._ready[key], -1)
            self._taken[key] = self._ready.pop(key)
        return tuple(self._taken[key] for key in keys)

    def _whole_round(self, version: int) -> list[Key]:
        round_ = version // self.config.reuse
        if self._num_ready[round_] != self.num_prompts(round_):
            return []
        keys = sorted(key for key in self._ready if key[0] == round_)
        is_any_old = any(self._is_old(self._ready[key].version, version) for key in keys)
        return [] if is_any_old else keys

    def _draw(self, version: int) -> list[Key]:
        if self._num_ready.total() < self.prompts_per_step:
            return []
        keys = [k for k in sorted(self._ready) if not self._is_old(self._ready[k].version, version)]
        if self._size(keys) < self.prompts_per_step:
            return []
        return sorted(self._pick(self._in_drawn_order(keys, version), version))

    def _in_drawn_order(self, keys: Sequence[Key], version: int) -> list[Key]:
        """A weighted draw without replacement (Efraimidis and Spirakis 2006)."""
        waits = np.random.default_rng([self._seed, version]).exponential(size=len(keys))
        if self.config.order == "prioritised":
            shares = np.array([self._ready[key].priority for key in keys]) + 1e-6
            waits = waits / shares**self.config.priority_exponent
        return [keys[i] for i in np.argsort(waits, kind="stable")]

    def _pick(self, drawn: Sequence[Key], version: int) -> list[Key]:
        """The first of `drawn` that make a step, after those without which more would turn too old
        unused, all at once, than the steps until then can take."""
        chosen: dict[Key, None] = {}
        size = 0

        def choose(keys: Sequence[Key], wanted: int) -> None:
            nonlocal size
            for key in keys:
                if size >= min(wanted, self.prompts_per_step):
                    break
                if key not in chosen:
                    chosen[key] = None
                    size += len(self._ready[key].chunk.prompts)

        unused = [key for key in drawn if not self._uses[key]]
        for ahead in range(self.max_lag + 1):
            ending = [k for k in unused if self._ready[k].version + self.max_lag <= version + ahead]
            choose(ending, self._size(ending) - ahead * self.prompts_per_step)
        choose(drawn, self.prompts_per_step)
        return list(chosen)

    def release(self, version: int) -> None:
        """The step that a learner at `version` took has been trained and its weights published: free
        what will not be used again."""
        for key in list(self._taken):
            entry = self._taken.pop(key)
            self._uses[key] += 1
            if self._uses[key] < self.config.reuse:
                self._ready[key] = entry
                self._count_ready(entry, 1)
            else:
                self._free(entry)
        if self.is_fifo and (version + 1) % self.config.reuse == 0:
            self.num_slots_used -= self._num_dropped.pop(version // self.config.reuse, 0)

    def remake(self) -> tuple[Chunk, ...]:
        """Put the taken entries back to reserved: their bytes were lost."""
        return tuple(self._back_to_reserved(self._taken, key) for key in sorted(self._taken))

    def check_integrity(self) -> None:
        """Assert that every chunk is in one state, that the counts are those of what is held and
        that the slots in use fit the capacity."""
        states = [set(self._reserved), set(self._ready), set(self._taken)]
        held = set.union(*states)
        assert sum(map(len, states)) == len(held), "a chunk is held twice"
        assert set(+self._uses) <= held, "uses are counted of what is gone"
        chunks = [*self._reserved.values(), *(e.chunk for e in self._entries())]
        num_prompts = sum(len(chunk.prompts) for chunk in chunks)
        num_prompts += self._num_dropped.total() if self.is_fifo else 0
        assert num_prompts == self.num_slots_used <= self.capacity, "more slots in use than exist"
        ready: Counter[int] = Counter()
        for entry in self._ready.values():
            ready[entry.chunk.step] += len(entry.chunk.prompts)
        assert ready == self._num_ready, "prompts are ready that are not held"
        assert self._versions == Counter(e.version for e in self._ready.values())

    def _is_old(self, sampled: int, version: int) -> bool:
        return version - sampled > self.max_lag

    def _size(self, keys: Sequence[Key]) -> int:
        """Prompts of ready entries."""
        return sum(len(self._ready[key].chunk.prompts) for key in keys)

    def _free(self, entry: Entry) -> None:
        self.num_slots_used -= len(entry.chunk.prompts)
        del self._uses[entry.chunk.key]

    def _count_ready(self, entry: Entry, sign: int) -> None:
        round_ = entry.chunk.step
        self._num_ready[round_] += sign * len(entry.chunk.prompts)
        self._versions[entry.version] += sign
        for counts, key in ((self._num_ready, round_), (self._versions, entry.version)):
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
