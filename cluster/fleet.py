"""The fleet: the actors of a run and how they come to life, each on the node that it is given.

Samplers and scorers restart for ever and a learner never does by itself. Ray retries no task: the
controller does, and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.pool import Peer, Pool
from actors.sampler import SamplerActor
from actors.scorer import ScorerActor
from cluster.placement import Plan, place_sampler
from cluster.supervise import Fault, Lost, Pending, Result, Task
from learners.learner import LearnerActor
from musicrl.broadcast import Address
from musicrl.config import ClusterConfig, TrainConfig
from musicrl.world import find_policy, find_world

START_ATTEMPTS = 3


class Fleet:
    """Started together; `stop` ends every actor."""

    address: Address | None = None
    """Where the learner broadcasts weights (none: Ray's object store alone carries them)."""

    def __init__(self, config: TrainConfig, pending: Pending, plan: Plan) -> None:
        """Raises TimeoutError or ConnectionError naming the actor that did not come up, and ValueError
        where nodes could not reach each other."""
        check_host(config.cluster, plan)
        self.config = with_absolute_paths(config)
        self.pending = pending
        self.plan = plan
        self.sampler_peers = [
            self._start_sampler(number, node) for number, node in enumerate(plan["sampler"])
        ]
        self.scorer_peers = [
            Peer(name=f"scorer {i}", actor=start_scorer(self.config, node))
            for i, node in enumerate(plan["scorer"])
        ]
        self.num_started = len(self.sampler_peers)
        """Samplers, in all: each has a number of its own."""
        self._begin_learners()
        self._await([*self.sampler_peers, *self.scorer_peers])
        self.samplers, self.scorers = Pool(self.sampler_peers), Pool(self.scorer_peers)

    def replace_learner(self) -> None:
        """Start another learner, at the base policy, in place of one that died; with several
        ranks, all of them."""
        self._end_learners()
        self._begin_learners()

    def retire(self, pool: Pool, task: Task, lost: Lost) -> None:
        """A peer whose task failed rests until it answers; Ray is starting it again. One that is late
        is killed first."""
        if lost.fault is Fault.LATE:
            self.interrupt(task.peer)
        elif lost.fault is not Fault.PEER:
            return pool.give(task.peer)
        self._ask("restart", task.peer, "restarting", pool)

    def take_back(self, task: Task, result: Result) -> None:
        """A sampler or scorer whose answer nobody waits for any more is idle again."""
        pool = {"sample": self.samplers, "score": self.scorers}[task.kind]
        if isinstance(result, Lost):
            return self.retire(pool, task, result)
        pool.give(task.peer)

    def interrupt(self, peer: Peer) -> None:
        """Kill a process that hangs; Ray starts it again."""
        ray.kill(peer.actor, no_restart=False)

    def restarted(self, task: Task, result: Result) -> None:
        """A peer that had died answers again, or never will: it finds no place any more, say.

        Raises ConnectionError when nobody is left to do its work.
        """
        pool: Pool = task.subject
        if not isinstance(result, Lost):
            return pool.give(task.peer)
        pool.drop(task.peer)
        self._forget(task.peer)

    def grow(self) -> None:
        """Start one more sampler, where `cluster.max_samplers` and the cluster have room for it; it
        takes part once it answers."""
        most = self.config.cluster.max_samplers
        if most is None or len(self.sampler_peers) >= most or self.pending.count("join"):
            return
        node = place_sampler(self.config.cluster, self.plan, ray.nodes())  # type: ignore[no-untyped-call]
        if node is None:
            return
        self.num_started += 1
        peer = self._start_sampler(self.num_started - 1, node)
        self.sampler_peers.append(peer)
        self.plan = {**self.plan, "sampler": [*self.plan["sampler"], node]}
        self._ask("join", peer, "joining", self.samplers)

    def joined(self, task: Task, result: Result) -> None:
        """A new sampler answers, or never will."""
        if isinstance(result, Lost):
            return self._forget(task.peer)
        self.samplers.add(task.peer)

    def _ask(self, kind: str, peer: Peer, doing: str, pool: Pool) -> None:
        """Have the answer of a peer that is starting handled when it comes."""
        ping = peer.actor.ping.options(max_task_retries=-1).remote()
        task = Task(kind=kind, peer=peer, doing=doing, subject=pool, may_raise=True)
        self.pending.add(ping, task)

    def _forget(self, peer: Peer) -> None:
        """End an actor that will not work again, and let others have its place."""
        ray.kill(peer.actor)
        if peer in self.sampler_peers:
            nodes = list(self.plan["sampler"])
            del nodes[self.sampler_peers.index(peer)]
            self.plan = {**self.plan, "sampler": nodes}
            self.sampler_peers.remove(peer)

    def stop(self) -> None:
        for peer in (*self.sampler_peers, *self.scorer_peers):
            ray.kill(peer.actor)
        self._end_learners()

    def _start_sampler(self, number: int, node: str) -> Peer:
        name = f"sampler {number}"
        return Peer(name=name, actor=start_sampler(self.config, node, name))

    def _begin_learners(self) -> None:
        """Start the learner and its other ranks; again where one dies at it, as with its node."""
        for attempts_left in reversed(range(START_ATTEMPTS)):
            self.learner, self.followers = start_learners(self.config, self.plan)
            try:
                self._await([self.learner, *self.followers])
                self._unite()
                return self._open_broadcasts()
            except ConnectionError:
                self._end_learners()
                if not attempts_left:
                    raise

    def _end_learners(self) -> None:
        for peer in (self.learner, *self.followers):
            ray.kill(peer.actor)

    def _unite(self) -> None:
        """Let the ranks of the learner, if there are several, meet."""
        if not self.followers:
            return
        actors = [follower.actor for follower in self.followers]
        opening = self.learner.actor.open.remote(actors)
        host, port = self.pending.call(opening, self.learner, "opening the learners' store")
        ranks = [self.learner, *self.followers]
        joining = [peer.actor.join.remote(rank, host, port) for rank, peer in enumerate(ranks)]
        for peer, join in zip(ranks, joining, strict=True):
            self.pending.call(join, peer, "meeting the other learners")

    def _open_broadcasts(self) -> None:
        if self.config.cluster.weights_transport == "collective":
            opening = self.learner.actor.broadcast.remote()
            self.address = self.pending.call(opening, self.learner, "opening its broadcasts")

    def _await(self, peers: Sequence[Peer]) -> None:
        pings = [peer.actor.ping.options(max_task_retries=-1).remote() for peer in peers]
        for peer, ping in zip(peers, pings, strict=True):
            self.pending.call(ping, peer, "starting")


def check_host(cluster: ClusterConfig, plan: Plan) -> None:
    """Raise ValueError where weights are to be broadcast between nodes over a loopback."""
    nodes = {*plan["learner"], *plan["sampler"]}
    is_broadcast = cluster.weights_transport == "collective"
    if is_broadcast and len(nodes) > 1 and cluster.learner_host != "node":
        raise ValueError(
            f"cluster.weights_transport collective on {len(nodes)} nodes needs "
            f"cluster.learner_host node, got {cluster.learner_host}"
        )


def start_sampler(config: TrainConfig, node: str, name: str) -> Any:
    cluster = config.cluster
    actor = ray.remote(SamplerActor).options(
        num_cpus=cluster.sampler_threads,
        num_gpus=cluster.sampler_gpus,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy=on_node(node),
    )
    return actor.remote(config, name)


def start_scorer(config: TrainConfig, node: str) -> Any:
    cluster = config.cluster
    actor = ray.remote(ScorerActor).options(
        num_cpus=cluster.scorer_threads,
        num_gpus=cluster.scorer_gpus,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy=on_node(node),
    )
    return actor.remote(config)


def start_learners(config: TrainConfig, plan: Plan) -> tuple[Peer, list[Peer]]:
    """The leading learner, and the others, which share its updates."""
    first, *others = plan["learner"]
    leader = Peer(name="learner", actor=start_learner(config, first))
    return leader, [
        Peer(name=f"learner {rank}", actor=start_learner(config, node))
        for rank, node in enumerate(others, start=1)
    ]


def start_learner(config: TrainConfig, node: str) -> Any:
    cluster = config.cluster
    actor = ray.remote(LearnerActor).options(
        num_cpus=cluster.learner_threads,
        num_gpus=cluster.learner_gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy=on_node(node),
    )
    return actor.remote(config)


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """There; elsewhere once the node is gone, or while others hold what it has."""
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration for processes that may have another working directory."""
    model = config.model
    weights = None if model.weights is None else find_world(model.weights).absolute()
    folder = find_world(weights)
    policy = None if model.policy is None else find_policy(folder, model.policy).absolute()
    model = replace(model, weights=weights, policy=policy)
    out, reward = config.out.absolute(), config.reward.with_absolute_paths()
    return replace(config, out=out, model=model, reward=reward)
