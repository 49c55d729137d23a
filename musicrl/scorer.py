"""The scorer: clips to rewards, and to the scores of judges that no training ever sees.

Pure: the same clips get the same scores wherever and however often they are scored. Knows nothing
of policies or of processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from musicrl.evaluation.heldout import ChunkScores, EvaluationChunk, score_chunk
from musicrl.playable import PlayableWorld
from musicrl.rewards.base import Reward
from musicrl.rewards.mix import RewardConfig, make_mix
from musicrl.types import Clips, Prompt, RewardBatch


class Scorer:
    """The mix of rewards and the judges of a world. `seconds` is the time of the latest call."""

    def __init__(
        self,
        world: PlayableWorld,
        config: RewardConfig,
        judges: Sequence[Reward] = (),
        *,
        device: torch.device | None = None,
    ) -> None:
        """Rewards that can move to `device` do (none: the CPU); judges stay on the CPU."""
        self.mix = make_mix(config, world)
        self.mix.move(device or torch.device("cpu"))
        self.judges = tuple(judges)
        self.seconds = 0.0

    def score(self, prompts: Sequence[Prompt], clips: Clips) -> RewardBatch:
        started = time.perf_counter()
        rewards = self.mix(prompts, clips)
        self.seconds = time.perf_counter() - started
        return rewards

    def evaluate(self, chunk: EvaluationChunk, clips: Clips) -> ChunkScores:
        return score_chunk(chunk, clips, self.mix, self.judges)


def mean_advantage(rewards: RewardBatch, samples_per_prompt: int) -> float:
    """Mean |r - mean of the prompt's other samples| over the valid samples of a chunk (adjacent
    samples are of one prompt): what prioritised replay goes by, since a scorer knows no value
    network (this project's choice). A sample without others, and a chunk without any, gives 0."""
    total = np.where(rewards.valid, rewards.total, 0.0).reshape(-1, samples_per_prompt)
    valid = rewards.valid.reshape(total.shape)
    others = valid.sum(1, keepdims=True) - 1
    mean = (total.sum(1, keepdims=True) - total) / np.maximum(others, 1)
    advantages = np.abs(total - mean)[valid & (others > 0)]
    return float(advantages.mean()) if len(advantages) else 0.0
