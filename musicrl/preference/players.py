"""Who plays to listeners: one policy for good, or always the newest checkpoint of a run.

A follower looks for a newer checkpoint every few seconds, in a thread of its own, and loads it
beside the policy that plays: pairs that are being sampled end as they began, and the next one is of
the newer. While it loads there are two policies in memory. Knows nothing of listeners or of pairs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from musicrl.rollout import RolloutWorker

logger = logging.getLogger(__name__)
POLICY = "policy.safetensors"


@dataclass(frozen=True, slots=True)
class Player:
    """A policy that is ready to sample."""

    worker: RolloutWorker
    policy: str
    """Name and digest, kept with every clip of it."""


Load = Callable[[Path], Player]
"""Of a policy's file; raises OSError or ValueError for what cannot be loaded."""


class Players(Protocol):
    """Whoever plays next."""

    @property
    def player(self) -> Player: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class OnePlayer:
    """The same policy always."""

    player: Player

    def close(self) -> None:
        """Nothing runs."""


class RunFollower:
    """Plays the newest checkpoint of a run; what it is given first, until there is one."""

    def __init__(self, run: Path, first: Player, load: Load, *, every_seconds: float) -> None:
        """Looks at once, then every so many seconds. Raises FileNotFoundError without a run."""
        if not run.is_dir():
            raise FileNotFoundError(f"no run at {run} to follow")
        self.player = first
        self._run, self._load, self._every = run, load, every_seconds
        self._seen: Path | None = None
        self._closed = Event()
        self.look()
        self._thread = Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def look(self) -> bool:
        """Load the newest checkpoint if it is new; whether it plays from now on.

        One that cannot be loaded is logged and passed over; one that is deleted meanwhile, since
        the run has newer ones, is looked for again.
        """
        file = newest_policy(self._run)
        if file is None or file == self._seen:
            return False
        try:
            self.player = self._load(file)
        except (OSError, ValueError) as fault:
            if file.is_file():
                logger.warning("%s is not played: %s", file, fault)
                self._seen = file
            return False
        self._seen = file
        return True

    def close(self) -> None:
        """End the thread; what it loads is loaded to its end."""
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._closed.wait(self._every):
            if self.look():
                print(f"serving {self.player.policy}", flush=True)


def newest_policy(run: Path) -> Path | None:
    """The policy of a run's newest checkpoint, if it has any: a checkpoint appears whole."""
    found = (run / "checkpoints").glob(f"step_*/{POLICY}")
    files = [file for file in found if re.fullmatch(r"step_\d+", file.parent.name)]
    return max(files, key=lambda file: int(file.parent.name.removeprefix("step_")), default=None)
