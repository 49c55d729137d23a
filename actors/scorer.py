"""The scorer actor: a `Scorer` in a process of its own.

Pure: a call may be repeated anywhere, and Ray may retry it. It knows no policy and no learner.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray
import torch

from musicrl.config import TrainConfig
from musicrl.device import role_device
from musicrl.evaluation.heldout import ChunkScores, EvaluationChunk
from musicrl.rollout import Chunk
from musicrl.scorer import Scorer, mean_advantage
from musicrl.types import Clips, RewardBatch
from musicrl.worlds import judges_of_world, load_world


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """What the controller reads of a chunk's rewards; these stay in the object store."""

    seconds: float
    """That they took."""
    priority: float
    """Of the chunk in the replay: its mean |advantage|."""


class ScorerActor:
    """Clips arrive as top-level arguments: Ray hands over views of the object store."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_num_threads(config.cluster.scorer_threads)
        self.samples_per_prompt = config.rollout.samples_per_prompt
        world = load_world(config.model.weights, config.model.policy)
        judges = judges_of_world(config.model.weights)
        device = role_device(config.cluster.scorer_gpus)
        self.scorer = Scorer(world, config.reward, judges, device=device)

    def ping(self) -> int:
        """The process id: the actor is up."""
        return os.getpid()

    @ray.method(num_returns=2)
    def score(self, chunk: Chunk, clips: Clips) -> tuple[RewardBatch, ScoreReport]:
        """Rewards of a chunk's clips."""
        prompts = [prompt for prompt in chunk.prompts for _ in range(self.samples_per_prompt)]
        rewards = self.scorer.score(prompts, clips)
        priority = mean_advantage(rewards, self.samples_per_prompt)
        return rewards, ScoreReport(seconds=self.scorer.seconds, priority=priority)

    def evaluate(self, chunk: EvaluationChunk, clips: Clips) -> ChunkScores:
        """Rewards, mismatched rewards and judges of held-out clips."""
        return self.scorer.evaluate(chunk, clips)
