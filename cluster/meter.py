"""The meter: how busy each class of actors was, and how long weights were on their way.

It watches the tasks in flight as `cluster.trace` does, and answers for the time since it was last
asked. A task counts where it ends, so that one update may show more than a whole and the next less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from cluster.supervise import Lost, Result, Task
from cluster.trace import phases_of
from musicrl.config import ClusterConfig

ROLES = {"sampler": "sample", "scorer": "score", "learner": "learn"}
"""Classes of actors, and the kind of task that they are there for."""


def sizes_of(cluster: ClusterConfig) -> dict[str, int]:
    """Actors of each class that take tasks: of several learners, the one that leads."""
    return {"sampler": cluster.num_samplers, "scorer": cluster.num_scorers, "learner": 1}


@dataclass(slots=True)
class Meter:
    """Handed to `Pending` as an observer."""

    sizes: Mapping[str, int]
    """Actors of each class."""
    is_broadcast: bool = False
    """Whether weights should come by broadcast (`cluster.weights_transport collective`)."""
    _busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _free: dict[str, float] = field(default_factory=dict)
    _published: list[float] = field(default_factory=list)
    _applied: list[float] = field(default_factory=list)
    _broadcast: list[float] = field(default_factory=list)

    def __call__(self, task: Task, result: Result, sent: float, done: float) -> None:
        """Note a task that was sent and came back, both in s."""
        name = task.peer.name
        start = max(sent, self._free.get(name, sent))
        self._free[name] = done
        if task.kind in ROLES.values():
            self._busy[name.split()[0]] += done - start
        if isinstance(result, Lost):
            return
        seconds = phases_of(task.kind, result).get("publish", 0.0)
        if task.kind == "learn":
            self._published.append(seconds)
        elif seconds > 0:
            self._applied.append(seconds)
            if self.is_broadcast:
                self._broadcast.append(float(result.way == "broadcast"))

    def take(self, wall_seconds: float, num_samplers: int) -> dict[str, float]:
        """Figures of the last `wall_seconds`, by their names in TensorBoard; samplers come and go."""
        sizes = {**self.sizes, "sampler": num_samplers}
        shares = {
            f"utilisation/{role}": self._busy[role] / (wall_seconds * sizes[role]) for role in ROLES
        }
        shares["cluster/samplers"] = float(num_samplers)
        averaged = {
            "weights/publish_seconds": self._published,
            "weights/apply_seconds": self._applied,
            "weights/broadcast_share": self._broadcast,
        }
        means = {name: fmean(values) for name, values in averaged.items() if values}
        self._busy.clear()
        self._published.clear()
        self._applied.clear()
        self._broadcast.clear()
        return {**shares, **means}
