"""The learner actor: a `Learner` in a process of its own, alone or as one rank of several.

Stateful, so its tasks are never retried by Ray; when it dies the controller starts another from the
newest checkpoint. Weights leave it as RETURN values, which the controller owns: an actor's death
loses none of them. Of several ranks one leads: the controller knows it alone, and it tells the
others what to do. It knows no sampler and no reward.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import ObjectRef
from ray.util import get_node_ip_address
from torch._C._distributed_c10d import Store

from musicrl.archive import FOLDER, Archive
from musicrl.config import TrainConfig
from musicrl.device import role_device
from musicrl.evaluation.heldout import Divergence, EvaluationChunk
from musicrl.learner import Learner, StepReport
from musicrl.ranks import find_store, join_group, open_store
from musicrl.run import Run
from musicrl.types import Experience, RewardBatch, Rollouts, Weights
from musicrl.worlds import load_world

Pair = tuple["ObjectRef[Rollouts]", "ObjectRef[RewardBatch]"]


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
        size = self.config.cluster.num_learners
        group = join_group(
            store, rank=rank, size=size, host=self._host, timeout_seconds=self._timeout
        )
        self.learner.share(group)

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
        others = [follower.restore.remote(checkpoint) for follower in self.followers]
        self.learner.restore(checkpoint)
        ray.get(others, timeout=self._timeout)
        return self.learner.version

    @ray.method(num_returns=2)
    def step(self, step: int, pairs: Sequence[Pair]) -> tuple[StepReport, Weights]:
        """Do training step number `step` on the experience of `pairs`, in their order.

        The references are fetched here, and by every follower, before anything changes. A
        follower's death is this task's failure.
        """
        fetching = [follower.fetch.remote(step, pairs) for follower in self.followers]
        self.fetch(step, pairs)
        ray.get(fetching, timeout=self._timeout)
        following = [follower.follow.remote(step) for follower in self.followers]
        try:
            found = self._learn(step)
        except ConnectionError:
            ray.get(following, timeout=self._timeout)  # raises what became of the one that is gone
            raise
        ray.get(following, timeout=self._timeout)
        if self._archive is not None and self._fetched is not None:
            self._archive.write(*self._fetched)
        return found

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
        return self.learner.weights()

    def divergence(self, chunk: EvaluationChunk, rollouts: Rollouts) -> Divergence:
        """How far the policy is from the base on held-out clips."""
        return self.learner.divergence(chunk, rollouts)

    def save(self) -> Path:
        """Write a checkpoint of the current version into the run's folder."""
        return self.learner.save(Run.of(self.config))
