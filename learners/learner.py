"""The learner actor: a `Learner` in a process of its own.

Stateful, so its tasks are never retried by Ray; when it dies the controller starts another from the
newest checkpoint. Weights leave it as RETURN values, which the controller owns: an actor's death
loses none of them. It knows no sampler and no reward.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from ray import ObjectRef

from musicrl.config import TrainConfig
from musicrl.device import role_device
from musicrl.evaluation.heldout import Divergence, EvaluationChunk
from musicrl.learner import Learner, StepReport
from musicrl.run import Run
from musicrl.types import Experience, RewardBatch, Rollouts, Weights
from musicrl.world import World

Pair = tuple["ObjectRef[Rollouts]", "ObjectRef[RewardBatch]"]


class LearnerActor:
    """Starts at the base policy; `restore` moves it to a checkpoint."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_num_threads(config.cluster.learner_threads)
        self.config = config
        world = World.load(config.model.weights, config.model.policy)
        device = role_device(config.cluster.learner_gpus)
        self.learner = Learner(world, config, device=device)

    def ping(self) -> int:
        """The process id: the actor is up."""
        return os.getpid()

    def restore(self, checkpoint: Path) -> int:
        """Continue from a checkpoint; the training steps that were done."""
        self.learner.restore(checkpoint)
        return self.learner.version

    @ray.method(num_returns=2)
    def step(self, step: int, pairs: Sequence[Pair]) -> tuple[StepReport, Weights]:
        """Do training step number `step` on the experience of `pairs`, in their order.

        The references are fetched here, before anything changes.
        """
        flat = [reference for pair in pairs for reference in pair]
        values = ray.get(flat, timeout=self.config.cluster.task_timeout_seconds)
        experience = [
            Experience(rollouts=rollouts, rewards=rewards)
            for rollouts, rewards in zip(values[::2], values[1::2], strict=True)
        ]
        return self.learner.step(step, experience)

    def weights(self) -> Weights:
        """The current version."""
        return self.learner.weights()

    def divergence(self, chunk: EvaluationChunk, rollouts: Rollouts) -> Divergence:
        """How far the policy is from the base on held-out clips."""
        return self.learner.divergence(chunk, rollouts)

    def save(self) -> Path:
        """Write a checkpoint of the current version into the run's folder."""
        return self.learner.save(Run(self.config.out))
