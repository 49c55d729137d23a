"""The sampler actor: a `RolloutWorker` in a process of its own.

It keeps one version of the weights and fetches another only when a task asks for it. A restarted
actor has none and fetches them with its next task. It knows no reward and no learner.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
import torch
from ray import ObjectRef

from musicrl.config import TrainConfig
from musicrl.device import role_device
from musicrl.evaluation.heldout import EvaluationChunk
from musicrl.rollout import Chunk, RolloutWorker, rollout_bytes
from musicrl.types import Clips, Rollouts, Weights
from musicrl.worlds import load_world


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """What the controller reads of a chunk; the bytes themselves stay in the object store."""

    version: int
    """Of the weights that sampled it."""
    num_bytes: int
    """Of the rollouts."""
    seconds: Mapping[str, float]
    """Of the phases `publish` (fetching and applying weights), `sample` and `decode`."""


class SamplerActor:
    """Each task names its weights: a version, and a list of one reference to them (a list, so that
    Ray passes the reference and not the bytes)."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_num_threads(config.cluster.sampler_threads)
        self.config = config
        world = load_world(config.model.weights, config.model.policy)
        device = role_device(config.cluster.sampler_gpus)
        self.worker = RolloutWorker(world, config.rollout.sampling, device=device)
        self.version: int | None = None

    def ping(self) -> int:
        """The process id: the actor is up."""
        return os.getpid()

    @ray.method(num_returns=3)
    def generate(
        self, chunk: Chunk, version: int, weights: Sequence[ObjectRef[Weights]]
    ) -> tuple[Rollouts, Clips, SampleReport]:
        """Sample and decode a chunk of a training step."""
        seconds = self._use(version, weights)
        rollouts, clips = self.worker.generate(
            chunk.prompts,
            first_prompt_index=chunk.first_prompt,
            step=chunk.step,
            run_seed=self.config.seed,
            samples_per_prompt=self.config.rollout.samples_per_prompt,
            version=version,
            clip_seconds=self.config.rollout.clip_seconds,
        )
        return rollouts, clips, self._report(rollouts, version, seconds)

    @ray.method(num_returns=3)
    def generate_heldout(
        self, chunk: EvaluationChunk, version: int, weights: Sequence[ObjectRef[Weights]]
    ) -> tuple[Rollouts, Clips, SampleReport]:
        """Sample and decode one clip of each held-out prompt."""
        seconds = self._use(version, weights)
        rollouts, clips = self.worker.generate_heldout(
            chunk.prompts, first=chunk.first, version=version
        )
        return rollouts, clips, self._report(rollouts, version, seconds)

    def _use(self, version: int, weights: Sequence[ObjectRef[Weights]]) -> float:
        """Fetch and apply the weights of `version` unless they are applied; the seconds that it
        took."""
        if version == self.version:
            return 0.0
        (reference,) = weights
        started = time.perf_counter()
        arrived = ray.get(reference, timeout=self.config.cluster.task_timeout_seconds)
        self.version = None
        self.worker.apply(arrived)
        self.version = version
        return time.perf_counter() - started

    def _report(self, rollouts: Rollouts, version: int, publish: float) -> SampleReport:
        seconds = {**self.worker.seconds, "publish": publish}
        return SampleReport(version=version, num_bytes=rollout_bytes(rollouts), seconds=seconds)
