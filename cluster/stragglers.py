"""Stragglers: a task that takes far longer than its kind is given to a second actor.

Both make the same, from the same seeds; the first to answer is heard, and the other only becomes
idle. So a slow machine or a hung process holds no step up for longer than the rest of its kind takes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from statistics import median

from cluster.supervise import Lost, Pending, Result, Task

KINDS = ("sample", "score")
LEAST_SECONDS = 1.0
"""A task younger than this is not worth doing twice."""
LEAST_TASKS = 5
"""Tasks of a kind that must have come back before any is called slow."""
REMEMBERED = 64


@dataclass(slots=True)
class Copies:
    """A slow task and its copy, until both have come back."""

    tasks: tuple[Task, Task]
    """Held, so that no other task can be taken for one of them."""
    out: int = 2
    is_answered: bool = False


@dataclass(slots=True)
class Stragglers:
    """Handed to `Pending` as an observer, so that it knows how long tasks take."""

    pending: Pending
    factor: float | None
    """Of the median, beyond which a task is slow; None: none is."""
    _seconds: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=REMEMBERED))
    )
    _copies: dict[int, Copies] = field(default_factory=dict)
    """By the identity of either task: what they work on may be out a third time, made again."""

    def __call__(self, task: Task, result: Result, sent: float, done: float) -> None:
        if task.kind in KINDS and not isinstance(result, Lost):
            self._seconds[task.kind].append(done - sent)

    def find(self, kind: str, epoch: int) -> Task | None:
        """The oldest slow task of a kind that has no copy."""
        seconds = self._seconds[kind]
        if self.factor is None or len(seconds) < LEAST_TASKS:
            return None
        limit = max(LEAST_SECONDS, self.factor * median(seconds))
        for task in self.pending.older_than(kind, limit):
            if task.epoch == epoch and id(task) not in self._copies:
                return task
        return None

    def pair(self, slow: Task, copy: Task) -> None:
        """Both are out from now on."""
        self._copies[id(slow)] = self._copies[id(copy)] = Copies(tasks=(slow, copy))

    def settle(self, task: Task, result: Result) -> bool:
        """A task came back: whether it counts. The first answer does, and the loss of the last copy
        that was out. Each task is settled once."""
        copies = self._copies.get(id(task))
        if copies is None:
            return True
        copies.out -= 1
        if not copies.out:
            for one in copies.tasks:
                del self._copies[id(one)]
        if copies.is_answered:
            return False
        copies.is_answered = not isinstance(result, Lost)
        return copies.is_answered or not copies.out
