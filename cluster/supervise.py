"""Supervision: every task in flight, its deadline, and what its failure means.

The one place that waits for other processes and the one place that tells a dead peer from lost
bytes from a mistake. It knows references and peers, not what a task is for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from ray import exceptions

from actors.pool import Peer

Result = Any
"""What a task returned, or `Lost`."""


class Fault(Enum):
    """Why a task gave nothing."""

    PEER = "its process died"
    BYTES = "an object that it needed was lost"
    RAISED = "it raised an exception"
    LATE = "it was late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A task that can be done again."""

    fault: Fault
    error: BaseException

    def __str__(self) -> str:
        lines = [line.strip() for line in str(self.error).splitlines() if line.strip()]
        return f"{self.fault.value} ({lines[-1]})" if lines else self.fault.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A call in flight. The reference that is waited for is the smallest of its returns."""

    kind: str
    peer: Peer
    doing: str
    """Ends the sentence "sampler 1 was ..."."""
    subject: Any = None
    """What the task is about, for whoever handles its result."""
    outputs: tuple[Any, ...] = ()
    """References to its large returns, which are not fetched."""
    epoch: int = 0
    may_raise: bool = False
    """Whether an exception that it raises, or its lateness, is a loss too, and not the end of the
    run."""


Observer = Callable[[Task, Result, float, float], None]
"""Is told of every task that came back: when it was sent and when its end was seen, s."""


class Store(Protocol):
    """What is used of Ray here (the module itself, or a fake)."""

    def wait(
        self, refs: list[Any], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]: ...

    def get(self, ref: Any, *, timeout: float) -> Any: ...


@dataclass(slots=True)
class Pending:
    """Tasks in flight: {reference: task}, each with a deadline."""

    store: Store
    timeout_seconds: float
    """Of one task."""
    clock: Callable[[], float] = time.monotonic
    observers: list[Observer] = field(default_factory=list)
    _tasks: dict[Any, Task] = field(default_factory=dict)
    _sent: dict[Any, float] = field(default_factory=dict)
    _kinds: defaultdict[str, dict[Any, None]] = field(default_factory=lambda: defaultdict(dict))
    """References by the kind of their tasks, in the order of submission."""

    @contextmanager
    def watched(self, observer: Observer | None) -> Iterator[None]:
        """While open, `observer` (if there is one) is told of tasks."""
        observers = [] if observer is None else [observer]
        self.observers += observers
        try:
            yield
        finally:
            for one in observers:
                self.observers.remove(one)

    def add(self, reference: Any, task: Task) -> None:
        self._tasks[reference] = task
        self._kinds[task.kind][reference] = None
        self._sent[reference] = self.clock()

    def count(self, *kinds: str) -> int:
        """Tasks in flight of some kinds."""
        return sum(len(self._kinds[kind]) for kind in kinds)

    def wait(self, seconds: float) -> list[tuple[Task, Result]]:
        """What finished within `seconds`, in the order of submission, and what is late.

        Raises TimeoutError naming the peer whose deadline has passed where its task must not be late,
        and what a task raised.
        """
        if not self._tasks:
            return []
        ready, _ = self.store.wait(
            list(self._tasks), num_returns=1, timeout=seconds, fetch_local=False
        )
        if ready:
            ready, _ = self.store.wait(
                list(self._tasks), num_returns=len(self._tasks), timeout=0, fetch_local=False
            )
        finished = [(*self._pop(reference), reference) for reference in ready]
        late = self._pop_late()
        return [
            *((task, self._finish(reference, task, sent)) for task, sent, reference in finished),
            *((task, self._tell(task, self._late(task), sent)) for task, sent in late),
        ]

    def older_than(self, kind: str, seconds: float) -> Iterator[Task]:
        """Tasks of a kind in flight that were sent so long ago, the oldest first."""
        now = self.clock()
        for reference in self._kinds[kind]:
            if now - self._sent[reference] <= seconds:
                break
            yield self._tasks[reference]

    def peers(self, kind: str) -> tuple[str, ...]:
        """Names of those who have a task of a kind."""
        return tuple(self._tasks[reference].peer.name for reference in self._kinds[kind])

    def call(self, reference: Any, peer: Peer, doing: str) -> Any:
        """The value of one task that nothing else can go on without.

        Raises TimeoutError or ConnectionError naming the peer, and what the task raised.
        """
        value = self.fetch(reference, Task(kind="call", peer=peer, doing=doing))
        if isinstance(value, Lost):
            raise ConnectionError(f"{peer.name} was {doing} when {value}")
        return value

    def _pop(self, reference: Any) -> tuple[Task, float]:
        task = self._tasks.pop(reference)
        del self._kinds[task.kind][reference]
        return task, self._sent.pop(reference)

    def _finish(self, reference: Any, task: Task, sent: float) -> Result:
        return self._tell(task, self.fetch(reference, task), sent)

    def _tell(self, task: Task, result: Result, sent: float) -> Result:
        for observer in self.observers:
            observer(task, result, sent, self.clock())
        return result

    def _pop_late(self) -> list[tuple[Task, float]]:
        """Tasks whose deadline has passed: all have the same time, so that the oldest are the first
        to be late."""
        now, late = self.clock(), []
        while self._sent:
            reference, sent = next(iter(self._sent.items()))
            if now - sent <= self.timeout_seconds:
                break
            if not self._tasks[reference].may_raise:
                raise self._too_late(self._tasks[reference])
            late.append(self._pop(reference))
        return late

    def _late(self, task: Task) -> Lost:
        return Lost(fault=Fault.LATE, error=self._too_late(task))

    def fetch(self, reference: Any, task: Task) -> Result:
        """One return of a task. Raises as `wait` does."""
        try:
            return self.store.get(reference, timeout=self.timeout_seconds)
        except exceptions.GetTimeoutError as error:
            raise self._too_late(task) from error
        except exceptions.RayError as error:
            fault, cause = classify(error)
            if fault is Fault.RAISED and not task.may_raise:
                raise _blame(task, cause) from error
            return Lost(fault=fault, error=cause)

    def _too_late(self, task: Task) -> TimeoutError:
        return TimeoutError(
            f"{task.peer.name} was still {task.doing} after {self.timeout_seconds:g} s "
            "(cluster.task_timeout_seconds)"
        )


def classify(error: BaseException) -> tuple[Fault, BaseException]:
    """What a failed task means, and the exception at its root.

    The death of a producer surfaces at the consumer of its reference, as the cause of the
    consumer's own failure.
    """
    while isinstance(error, exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    if isinstance(error, PEER_ERRORS):
        return Fault.PEER, error
    if isinstance(error, BYTES_ERRORS):
        return Fault.BYTES, error
    return Fault.RAISED, error


PEER_ERRORS = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
)
BYTES_ERRORS = (exceptions.ObjectLostError, exceptions.GetTimeoutError)


def _blame(task: Task, cause: BaseException) -> BaseException:
    """The exception of a task as one of ours: a user's mistake stays one sentence."""
    sentence = f"{task.peer.name}, {task.doing}: {cause}"
    for kind in (FileNotFoundError, ValueError):
        if isinstance(cause, kind):
            return kind(sentence)
    return RuntimeError(sentence)
