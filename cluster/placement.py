"""Placement: which node of a cluster every actor of a run gets, decided before any is started.

Actors are packed one by one, the largest first, each into a node that still has room for all that
it asks for; a share of a GPU needs one device with that much left, as Ray counts it. It knows
sizes, not what is busy: what other jobs hold is not seen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from musicrl.config import ClusterConfig

ROLES = ("sampler", "scorer", "learner")
RESOURCES = ("CPU", "GPU")
GRAIN = 1e-4
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one actor asks for."""

    role: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.role} ({self.cpus:g} CPU{gpus})"


@dataclass(slots=True, kw_only=True)
class Node:
    """A machine of the cluster, and what is left of it while actors are placed."""

    id: str
    cpus: float
    gpus: list[float]
    """Of each device, the share that is left."""
    num_roles: Counter[str] = field(default_factory=Counter)
    """Actors placed here, by role."""

    def fits(self, request: Request) -> bool:
        return request.cpus <= self.cpus + GRAIN and self._devices(request.gpus) is not None

    def take(self, request: Request) -> None:
        devices = self._devices(request.gpus)
        assert devices is not None, f"{self.id} has no room for {request}"
        self.cpus -= request.cpus
        self.num_roles[request.role] += 1
        for device in devices:
            self.gpus[device] -= min(1.0, request.gpus)

    def _devices(self, gpus: float) -> list[int] | None:
        """The devices that `gpus` come from: one with a share left, the fullest first, or as many
        whole ones; None when there are not enough."""
        count, share = (0 if not gpus else max(1, round(gpus))), min(1.0, gpus)
        by_room = sorted(range(len(self.gpus)), key=lambda device: self.gpus[device])
        found = [d for d in by_room if self.gpus[d] + GRAIN >= share][:count]
        return found if len(found) == count else None


class Misfit(ValueError):
    """The actors of a run that find no place, in one sentence and as a table."""

    def __init__(
        self, requests: Sequence[Request], nodes: Sequence[Mapping[str, float]], placed: Plan
    ) -> None:
        self.requests, self.nodes = requests, nodes
        self.placed = {role: len(placed.get(role, ())) for role in ROLES}
        super().__init__(self._sentence())

    def lines(self) -> list[tuple[str, float, float, float]]:
        """(name, asked, there, missing) of every resource, then of every class of actor."""
        lines = []
        for name in RESOURCES:
            asked = sum(request_size(request, name) for request in self.requests)
            there = sum(node.get(name, 0.0) for node in self.nodes)
            lines.append((name, asked, there, max(0.0, asked - there)))
        for role in ROLES:
            mine = [request for request in self.requests if request.role == role]
            asked, there = len(mine), self.placed[role]
            lines.append((str(mine[0]), asked, there, asked - there))
        return lines

    def table(self) -> Table:
        table = Table("", title="what the run asks of the Ray cluster")
        for column in ("asked", "there", "missing"):
            table.add_column(column, justify="right")
        for name, *figures in self.lines():
            table.add_row(name, *(f"{figure:g}" for figure in figures))
        return table

    def _sentence(self) -> str:
        lines = self.lines()
        scarce = [
            f"{n:g} {name}{'s' * (n != 1)}"
            for name, _, _, n in lines[: len(RESOURCES)]
            if n > GRAIN
        ]
        lack = f"it lacks {' and '.join(scarce)}" if scarce else "no node has enough left for one"
        homeless = [
            f"{missing:g} of {asked:g} {role}s"
            for role, (_, asked, _, missing) in zip(ROLES, lines[len(RESOURCES) :], strict=True)
            if missing
        ]
        plural = "s" if len(self.nodes) != 1 else ""
        return (
            f"the Ray cluster of {len(self.nodes)} node{plural} has no place for "
            f"{', '.join(homeless)}: {lack} (see the threads and GPUs under `cluster`)"
        )


Plan = Mapping[str, Sequence[str]]
"""By role, the id of the node of each of its actors, in their order."""


def requests_of(cluster: ClusterConfig) -> list[Request]:
    """What every actor of a run asks for; of equal ones the learners come first, so that they find
    room together."""
    kinds = (
        ("learner", cluster.num_learners, cluster.learner_threads, cluster.learner_gpus),
        ("sampler", cluster.num_samplers, cluster.sampler_threads, cluster.sampler_gpus),
        ("scorer", cluster.num_scorers, cluster.scorer_threads, cluster.scorer_gpus),
    )
    return [
        Request(role=role, cpus=float(threads), gpus=gpus)
        for role, count, threads, gpus in kinds
        for _ in range(count)
    ]


def place(cluster: ClusterConfig, nodes: Iterable[Mapping[str, Any]]) -> Plan:
    """A node for every actor, out of those that `ray.nodes()` lists.

    First-fit decreasing, tried by GPUs and by CPUs first. Raises Misfit when neither finds a place
    for everybody.
    """
    requests = requests_of(cluster)
    alive = [node for node in nodes if node["Alive"]]
    plans = [pack(cluster.placement, requests, alive, size) for size in SIZES]
    best = max(plans, key=lambda plan: sum(map(len, plan.values())))
    if sum(map(len, best.values())) < len(requests):
        raise Misfit(requests, [node["Resources"] for node in alive], best)
    return best


def pack(
    placement: str,
    requests: Sequence[Request],
    nodes: Sequence[Mapping[str, Any]],
    size: Callable[[Request], tuple[float, float]],
) -> Plan:
    """By role, the nodes of those actors that found one, the largest by `size` first."""
    rooms = [to_node(node) for node in nodes]
    plan: dict[str, list[str]] = {}
    for request in sorted(requests, key=size, reverse=True):
        fitting = [node for node in rooms if node.fits(request)]
        if fitting:
            chosen = min(fitting, key=lambda node: _order(placement, node, request))
            chosen.take(request)
            plan.setdefault(request.role, []).append(chosen.id)
    return plan


def place_sampler(
    cluster: ClusterConfig, plan: Plan, nodes: Iterable[Mapping[str, Any]]
) -> str | None:
    """A node with room for one more sampler beside the actors of `plan`; None when none has."""
    sizes = {request.role: request for request in requests_of(cluster)}
    rooms = {node["NodeID"]: to_node(node) for node in nodes if node["Alive"]}
    for role, ids in plan.items():
        for id_ in ids:
            if id_ in rooms and rooms[id_].fits(sizes[role]):
                rooms[id_].take(sizes[role])
    fitting = [node for node in rooms.values() if node.fits(sizes["sampler"])]
    if not fitting:
        return None
    return min(fitting, key=lambda node: _order(cluster.placement, node, sizes["sampler"])).id


def to_node(node: Mapping[str, Any]) -> Node:
    """A node of `ray.nodes()` with all that it has."""
    has = node["Resources"]
    return Node(id=node["NodeID"], cpus=has.get("CPU", 0.0), gpus=[1.0] * int(has.get("GPU", 0.0)))


def request_size(request: Request, name: str) -> float:
    return {"CPU": request.cpus, "GPU": request.gpus}[name]


def _by_gpus(request: Request) -> tuple[float, float]:
    return request.gpus, request.cpus


def _by_cpus(request: Request) -> tuple[float, float]:
    return request.cpus, request.gpus


SIZES = (_by_gpus, _by_cpus)
"""What makes an actor large."""


def _order(placement: str, node: Node, request: Request) -> tuple[float, ...]:
    """The node to prefer has the least of it. CPU actors leave nodes with GPUs to others; learners
    stay together, where there is room, however the rest is spread, since they talk in every update."""
    wasted = float(bool(node.gpus) and not request.gpus)
    if placement == "spread" and request.role != "learner":
        return node.num_roles[request.role], node.num_roles.total(), wasted
    return (wasted,)
