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
    """Of one task, while more than one of them is out."""

    out: int
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
    _copies: dict[object, Copies] = field(default_factory=dict)

    def __call__(self, task: Task, result: Result, sent: float, done: float) -> None:
        if task.kind in KINDS and not isinstance(result, Lost):
            self._seconds[task.kind].append(done - sent)

    def find(self, kind: str, epoch: int) -> Task | None:
        """The oldest slow task of a kind that is out once; it counts as out twice from now on."""
        seconds = self._seconds[kind]
        if self.factor is None or len(seconds) < LEAST_TASKS:
            return None
        limit = max(LEAST_SECONDS, self.factor * median(seconds))
        for task in self.pending.older_than(kind, limit):
            if task.epoch == epoch and _work(task) not in self._copies:
                self._copies[_work(task)] = Copies(out=2)
                return task
        return None

    def settle(self, task: Task, result: Result) -> bool:
        """A task came back: whether it counts. The first answer does, and the loss of the last copy
        that was out."""
        copies = self._copies.get(_work(task))
        if copies is None:
            return True
        copies.out -= 1
        if not copies.out:
            del self._copies[_work(task)]
        if copies.is_answered:
            return False
        copies.is_answered = not isinstance(result, Lost)
        return copies.is_answered or not copies.out


def _work(task: Task) -> object:
    """What a task and its copy have in common."""
    chunk = task.subject if task.kind == "sample" else task.subject.chunk
    return task.kind, task.epoch, chunk.key
