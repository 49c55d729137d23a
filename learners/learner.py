"""The learner actor: a `Learner` in a process of its own, alone or as one rank of several.

Stateful, so its tasks are never retried by Ray; when it dies the controller starts another from the
newest checkpoint. Weights leave it as RETURN values, which the controller owns: an actor's death
loses none of them. Of several ranks one leads: the controller knows it alone, and it tells the
others what to do. It knows no sampler and no reward.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
import torch
from ray import ObjectRef
from ray.util import get_node_ip_address
from torch._C._distributed_c10d import Store

from musicrl.archive import FOLDER, Archive
from musicrl.broadcast import Address, Broadcaster, find_kind
from musicrl.config import TrainConfig
from musicrl.device import role_device
from musicrl.evaluation.heldout import Divergence, EvaluationChunk
from musicrl.learner import Learner, StepReport
from musicrl.ranks import Ranks, find_store, join_group, open_store
from musicrl.run import Run
from musicrl.types import Experience, RewardBatch, Rollouts, Weights
from musicrl.worlds import load_world

Pair = tuple["ObjectRef[Rollouts]", "ObjectRef[RewardBatch]"]
Made = TypeVar("Made")


class LearnerActor:
    """Starts at the base policy; `restore` moves it to a checkpoint."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_num_threads(config.cluster.learner_threads)
        self.config = config
        world = load_world(config.model.weights, config.model.policy)
        device = role_device(config.cluster.learner_gpus)
        self.learner = Learner(world, config, device=device)
        self.followers: Sequence[Any] = ()
        self._store: Store | None = None
        self._archive = Archive(config.out / FOLDER) if config.archive_rollouts else None
        self._fetched: tuple[int, list[Experience]] | None = None
        self._broadcaster: Broadcaster | None = None

    def ping(self) -> int:
        """The process id: the actor is up."""
        return os.getpid()

    def open(self, followers: Sequence[Any]) -> tuple[str, int]:
        """Lead these actors; the address at which all ranks then `join`."""
        self.followers = followers
        store = open_store(self._host, self._timeout)
        self._store = store
        return self._host, store.port

    def join(self, rank: int, host: str, port: int) -> None:
        """Meet the other ranks, and share the steps from now on. Raises ConnectionError."""
        store = self._store or find_store(host, port, self._timeout)
        join = joining(self.config.cluster.learner_sharding, self.learner.device)
        ranks = join(
            store,
            rank=rank,
            size=self.config.cluster.num_learners,
            host=self._host,
            timeout_seconds=self._timeout,
        )
        self.learner.share(ranks)

    def broadcast(self) -> Address:
        """Broadcast every version that a step makes, from now on; where to listen for it."""
        cluster = self.config.cluster
        self._broadcaster = Broadcaster(
            self._host,
            kind=find_kind(cluster.learner_gpus, cluster.sampler_gpus),
            device=self.learner.device,
            timeout_seconds=cluster.broadcast_seconds,
        )
        return self._broadcaster.address

    @property
    def _timeout(self) -> float:
        return self.config.cluster.task_timeout_seconds

    @property
    def _host(self) -> str:
        host = self.config.cluster.learner_host
        return str(get_node_ip_address()) if host == "node" else host  # type: ignore[no-untyped-call]

    def restore(self, checkpoint: Path) -> int:
        """Continue from a checkpoint; the training steps that were done. What another node wrote is
        fetched, where checkpoints have a URL."""
        if not checkpoint.exists():
            Run.of(self.config).fetch()
        following = [follower.restore.remote(checkpoint) for follower in self.followers]
        self._lead(following, lambda: self.learner.restore(checkpoint))
        return self.learner.version

    @ray.method(num_returns=2)
    def step(
        self, step: int, pairs: Sequence[Pair], resting: Sequence[str] = ()
    ) -> tuple[StepReport, Weights]:
        """Do training step number `step` on the experience of `pairs`, in their order. Who is
        `resting` is not waited for when the weights are broadcast.

        The references are fetched here, and by every follower, before anything changes. A
        follower's death is this task's failure.
        """
        fetching = [follower.fetch.remote(step, pairs) for follower in self.followers]
        self.fetch(step, pairs)
        ray.get(fetching, timeout=self._timeout)
        following = [follower.follow.remote(step) for follower in self.followers]
        report, weights = self._lead(following, lambda: self._learn(step))
        report = self._publish(report, weights, resting)
        if self._archive is not None and self._fetched is not None:
            self._archive.write(*self._fetched)
        return report, weights

    def _publish(self, report: StepReport, weights: Weights, resting: Sequence[str]) -> StepReport:
        """Broadcast a version, if anything is; Ray's object store gets it in any case, for those who
        miss it or come late."""
        if self._broadcaster is None:
            return report
        started = time.perf_counter()
        missed = tuple(self._broadcaster.publish(weights, without=resting))
        publish = report.seconds["publish"] + time.perf_counter() - started
        return replace(report, missed=missed, seconds={**report.seconds, "publish": publish})

    def _lead(self, following: Sequence[ObjectRef[None]], work: Callable[[], Made]) -> Made:
        """What this rank makes while the others follow; their faults are faults of this task."""
        try:
            made = work()
        except ConnectionError:
            ray.get(following, timeout=self._timeout)  # raises what became of the one that is gone
            raise
        ray.get(following, timeout=self._timeout)
        return made

    @property
    def _holders(self) -> Sequence[Any]:
        """Followers that hold what this rank lacks: they take part in all that needs the weights."""
        return self.followers if self.config.cluster.learner_sharding == "full" else ()

    def fetch(self, step: int, pairs: Sequence[Pair]) -> None:
        """Have the experience of a step at hand."""
        flat = [reference for pair in pairs for reference in pair]
        values = ray.get(flat, timeout=self._timeout)
        experience = [
            Experience(rollouts=rollouts, rewards=rewards)
            for rollouts, rewards in zip(values[::2], values[1::2], strict=True)
        ]
        self._fetched = step, experience

    def follow(self, step: int) -> None:
        """Do this rank's part of a step that was fetched."""
        self._learn(step)

    def _learn(self, step: int) -> tuple[StepReport, Weights]:
        assert self._fetched is not None
        number, experience = self._fetched
        if number != step:
            raise ValueError(f"step {step} is to be done, but step {number} was fetched")
        return self.learner.step(step, experience)

    def weights(self) -> Weights:
        """The current version."""
        following = [holder.follow_weights.remote() for holder in self._holders]
        return self._lead(following, self.learner.weights)

    def follow_weights(self) -> None:
        """Give this rank's part of them."""
        self.learner.weights()

    def divergence(self, chunk: EvaluationChunk, rollouts: Rollouts) -> Divergence:
        """How far the policy is from the base on held-out clips."""
        following = [h.follow_divergence.remote(chunk, rollouts) for h in self._holders]
        return self._lead(following, lambda: self.learner.divergence(chunk, rollouts))

    def follow_divergence(self, chunk: EvaluationChunk, rollouts: Rollouts) -> None:
        """Give this rank's part of the weights that say so."""
        self.learner.divergence(chunk, rollouts)

    def save(self) -> Path:
        """Write a checkpoint of the current version into the run's folder."""
        following = [holder.follow_save.remote() for holder in self._holders]
        return self._lead(following, lambda: self.learner.save(Run.of(self.config)))

    def follow_save(self) -> None:
        """Give this rank's part of a checkpoint."""
        self.learner.gather()


def joining(sharding: Literal["none", "full"], device: torch.device) -> Callable[..., Ranks]:
    """How learners on such devices meet."""
    if sharding == "none":
        return join_group
    from musicrl.sharding import join_sharded  # a second to load

    return partial(join_sharded, device=device)
