"""A Ray cluster of several nodes on this machine, for runs to be disturbed on."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray.cluster_utils import Cluster

CLASSES = {"sampler": "SamplerActor", "scorer": "ScorerActor", "learner": "LearnerActor"}
STORE_BYTES = 200 * 10**6


class Site:
    """Open while the runs go on."""

    def __init__(self, nodes: int, slots: int) -> None:
        self.num_nodes, self.slots = nodes, slots

    def __enter__(self) -> Self:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add() for _ in range(self.num_nodes)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cluster.shutdown()  # type: ignore[no-untyped-call]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def replace_node(self, random: random.Random) -> None:
        """Kill a node's raylet, and with it all actors there; another node takes its place."""
        node = self.nodes.pop(random.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self._add())

    def find(self, role: str) -> list[int]:
        """Processes of the actors of a role, on nodes of this cluster."""
        name = f"ray::{CLASSES[role]}"
        found = [pid for pid in _pids() if _command(pid).startswith(name)]
        return [pid for pid in found if _descends_from(pid, os.getpid())]

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=self.slots, object_store_memory=STORE_BYTES)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return False
    return False
