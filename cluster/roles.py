"""What the controller asks of the fleet and of the journal: real ones answer, and simulated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from actors.pool import Peer, Pool
from cluster.supervise import Lost, Pending, Result, Task
from musicrl.broadcast import Address
from musicrl.journal import Iteration


class Crew(Protocol):
    """Actors to give tasks to; see `cluster.fleet.Fleet`."""

    pending: Pending
    samplers: Pool
    scorers: Pool
    learner: Peer
    address: Address | None

    def retire(self, pool: Pool, task: Task, lost: Lost) -> None: ...

    def restarted(self, task: Task, result: Result) -> None: ...

    def joined(self, task: Task, result: Result) -> None: ...

    def grow(self) -> None: ...

    def replace_learner(self) -> None: ...


class Place(Protocol):
    """A folder with checkpoints; see `musicrl.run.Run`."""

    @property
    def folder(self) -> Path: ...

    def find_checkpoint(self) -> Path | None: ...


class Speaker(Protocol):
    def say(self, sentence: str) -> None: ...


class Watcher(Protocol):
    """See `musicrl.guards.Watch`."""

    @property
    def stopped_by(self) -> Any: ...


class Log(Protocol):
    """Where a run writes what happens; see `musicrl.journal.Journal`."""

    @property
    def run(self) -> Place: ...

    @property
    def display(self) -> Speaker: ...

    @property
    def watch(self) -> Watcher: ...

    def record(self, iteration: Iteration) -> None: ...

    def heard(self, name: str, step: int, prompts: Any, clips: Any) -> None: ...
