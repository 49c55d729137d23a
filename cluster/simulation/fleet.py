"""A fleet of simulated actors, each in the lane of the node that placement gives it.

A CPU actor shares the cores of its node; an actor with a GPU has its work done there, and shares it
with whoever has the rest: two on one GPU take turns. A GPU is as busy as one task makes it, which is
this project's choice and errs on the slow side where kernels would overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn

from actors.pool import Peer, Pool
from cluster.placement import GRAIN, Plan, Request, place, requests_of
from cluster.simulation import gathering
from cluster.simulation.actors import (
    Seat,
    SimulatedActor,
    SimulatedLearner,
    SimulatedSampler,
    SimulatedScorer,
)
from cluster.simulation.costs import Costs
from cluster.simulation.reducing import load_of
from cluster.simulation.store import VirtualStore
from cluster.simulation.timeline import Lane, Timeline
from cluster.supervise import Pending, Result, Task
from musicrl.broadcast import Address
from musicrl.config import ClusterConfig, TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node of the cluster that is planned for."""

    cores: float
    """That compute; Ray's slots may be more."""
    slots: float
    gpus: int = 0

    def to_ray(self, index: int) -> dict[str, Any]:
        """As `ray.nodes()` would list it."""
        resources = {"CPU": self.slots, "GPU": float(self.gpus)}
        return {"NodeID": str(index), "Alive": True, "Resources": resources}


class SimulatedFleet:
    """A `cluster.roles.Crew`."""

    address: Address | None = None

    def __init__(
        self, config: TrainConfig, machines: Sequence[Machine], costs: Costs, *, seed: int = 0
    ) -> None:
        """Raises `cluster.placement.Misfit` when the machines have no room for the actors."""
        cluster = config.cluster
        self.timeline = Timeline()
        store = VirtualStore(self.timeline)
        self.pending = Pending(
            store=store, timeout_seconds=cluster.task_timeout_seconds, clock=self.timeline.clock
        )
        plan = place(cluster, [m.to_ray(index) for index, m in enumerate(machines)])
        seats = find_seats(cluster, plan, Lanes(machines, costs.contention))
        seeds = count(seed * 1_000_003)
        samples = config.rollout.samples_per_prompt
        num_samples = config.rollout.prompts_per_step * samples
        self.learner_actor = SimulatedLearner(
            self.timeline,
            seats["learner"],
            costs,
            next(seeds),
            num_rows=max(1, num_samples // config.update.minibatches),
            reduce_seconds=reduce_seconds(config, costs),
        )
        self.sampler_actors = [
            SimulatedSampler(self.timeline, seat, costs, next(seeds), samples_per_prompt=samples)
            for seat in seats["sampler"]
        ]
        self.scorer_actors = [
            SimulatedScorer(self.timeline, seat, costs, next(seeds)) for seat in seats["scorer"]
        ]
        self.learner = Peer(name="learner", actor=self.learner_actor)
        self.samplers = Pool(_peers("sampler", self.sampler_actors))
        self.scorers = Pool(_peers("scorer", self.scorer_actors))

    @property
    def busy_seconds(self) -> Mapping[str, float]:
        """Seconds that the actors of each role have worked until now, summed over them."""
        return {
            "sampler": _busy(self.sampler_actors),
            "scorer": _busy(self.scorer_actors),
            "learner": _busy([self.learner_actor]),
        }

    def retire(self, pool: Pool, task: Task, lost: Any) -> NoReturn:
        raise AssertionError(f"{task.peer.name} failed in a simulation: {lost}")

    def restarted(self, task: Task, result: Result) -> NoReturn:
        raise AssertionError(f"{task.peer.name} restarted in a simulation")

    def joined(self, task: Task, result: Result) -> NoReturn:
        raise AssertionError(f"{task.peer.name} joined in a simulation")

    def grow(self) -> None:
        """The fleet of a simulation has one size."""

    def replace_learner(self) -> NoReturn:
        raise AssertionError("the learner failed in a simulation")


def reduce_seconds(config: TrainConfig, costs: Costs) -> float:
    """Of what the learners of an update tell each other. Raises ValueError where no costs say so."""
    cluster = config.cluster
    ranks, is_sharded = cluster.num_learners, cluster.learner_sharding == "full"
    if ranks == 1:
        return 0.0
    if costs.reducing is None or (is_sharded and costs.gathering is None):
        raise ValueError(
            f"cluster.num_learners {ranks} with learner_sharding {cluster.learner_sharding}: the "
            "costs do not hold what learners tell each other"
        )
    summing = costs.reducing.seconds(load_of(config), ranks=ranks)
    if not is_sharded or costs.gathering is None:
        return summing
    return summing + costs.gathering.seconds(gathering.load_of(config), ranks=ranks)


class Lanes:
    """The cores of every machine, and its GPUs with the shares that are still free."""

    def __init__(self, machines: Sequence[Machine], contention: float) -> None:
        self.cores = [Lane(machine.cores, contention) for machine in machines]
        self.gpus = [[Lane(1.0) for _ in range(machine.gpus)] for machine in machines]
        self.free = [[1.0] * machine.gpus for machine in machines]

    def seat(self, node: int, request: Request) -> Seat:
        """Where an actor on `node` computes: on its cores, or on the fullest GPU with room."""
        if not request.gpus:
            return Seat(lane=self.cores[node], demand=request.cpus)
        free, share = self.free[node], min(1.0, request.gpus)
        fitting = [device for device, left in enumerate(free) if left >= share - GRAIN]
        device = min(fitting, key=lambda device: free[device])
        free[device] -= share
        return Seat(lane=self.gpus[node][device], demand=1.0)


def find_seats(cluster: ClusterConfig, plan: Plan, lanes: Lanes) -> dict[str, list[Seat]]:
    """By role, a seat for every actor."""
    sizes = {request.role: request for request in requests_of(cluster)}
    return {
        role: [lanes.seat(int(node), sizes[role]) for node in nodes] for role, nodes in plan.items()
    }


def _peers(role: str, actors: Sequence[SimulatedActor]) -> list[Peer]:
    return [Peer(name=f"{role} {i}", actor=actor) for i, actor in enumerate(actors)]


def _busy(actors: Sequence[SimulatedActor]) -> float:
    return sum(actor.busy_seconds for actor in actors)
