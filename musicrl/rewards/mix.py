"""The weighted mix of rewards that is optimised, with its raw terms kept (paper section 4).

The only place where the failure of a reward is survived: an exception, a NaN or an infinity masks
the samples concerned and is logged; it never becomes a zero and never reaches a mean. Knows nothing
of what a reward measures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from musicrl.closest import closest
from musicrl.rewards.aesthetics import AESTHETICS, AestheticsConfig, load_aesthetics
from musicrl.rewards.base import Movable, Reward
from musicrl.rewards.preference import PREFERENCE, load_preference
from musicrl.rewards.table import RANGES, RewardWorld, check_reward_name, make_reward
from musicrl.types import Clips, Prompt, RewardBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The linear combination of rewards (paper section 4.2; its coefficients are not published)."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"text": 1.0})
    """Weight of each reward, by name or by `package.module:Class`. A weight of 0 is reported, not
    optimised."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(lowest, highest) raw value of a reward that enters the mix as 0..1; quality has (1, 5), as
    the paper's. A reward without a range enters raw, as the paper's text adherence."""
    aesthetics: AestheticsConfig = field(default_factory=AestheticsConfig)
    """Model and axes of the reward `aesthetics`."""
    preference_file: Path | None = None
    """Model of the reward `preference` (none: preference.safetensors in the world's folder)."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            check_reward_name(name)
            if not math.isfinite(weight):
                raise ValueError(f"the weight of reward {name!r} must be finite, got {weight}")
        if not any(self.weights.values()):
            raise ValueError("reward weights: at least one reward needs a weight other than 0")
        if self.preference_file is not None and PREFERENCE not in self.weights:
            raise ValueError(f"preference_file is set, but {PREFERENCE!r} has no weight")
        if self.aesthetics != AestheticsConfig() and AESTHETICS not in self.weights:
            raise ValueError(f"aesthetics is set, but {AESTHETICS!r} has no weight")
        for name, (lowest, highest) in self.ranges.items():
            if name not in self.weights:
                raise ValueError(
                    f"a range for {name!r}, which has no weight{closest(name, list(self.weights))}"
                )
            if not lowest < highest:
                raise ValueError(f"the range of reward {name!r} is empty: {lowest} to {highest}")

    def with_absolute_paths(self) -> RewardConfig:
        """The same for a process that may have another working directory."""
        file = None if self.preference_file is None else self.preference_file.absolute()
        return replace(self, preference_file=file, aesthetics=self.aesthetics.with_absolute_paths())


class RewardMix:
    """Scores clips with several rewards: raw terms, and the weighted sum of normalised terms."""

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        if rewards.keys() != weights.keys():
            raise ValueError(f"rewards {sorted(rewards)} but weights of {sorted(weights)}")
        self.rewards = dict(rewards)
        self.weights = dict(weights)
        self.ranges = dict(ranges or {})

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> RewardBatch:
        """Rewards of B clips for B prompts."""
        terms = {name: _survive(name, self.rewards[name], prompts, clips) for name in self.rewards}
        total = np.zeros(len(prompts), np.float64)
        for name, weight in self.weights.items():
            if weight != 0.0:
                total += weight * self._normalise(name, terms[name])
        valid = np.isfinite(total)
        return RewardBatch(
            total=np.where(valid, total, 0.0).astype(np.float32), terms=terms, valid=valid
        )

    def move(self, device: torch.device) -> None:
        """Bring to `device` the models of those rewards that can leave the CPU."""
        for reward in self.rewards.values():
            if isinstance(reward, Movable):
                reward.move(device)

    def _normalise(self, name: str, term: NDArray[np.float32]) -> NDArray[np.float64]:
        lowest, highest = self.ranges.get(name, (0.0, 1.0))
        return (term.astype(np.float64) - lowest) / (highest - lowest)


def make_mix(config: RewardConfig, world: RewardWorld) -> RewardMix:
    """The mix that `config` describes, its rewards made for `world`."""
    configured: Mapping[str, Callable[[], Reward]] = {
        PREFERENCE: lambda: load_preference(world, config.preference_file),
        AESTHETICS: lambda: load_aesthetics(config.aesthetics),
    }
    rewards = {
        name: configured[name]() if name in configured else make_reward(name, world)
        for name in config.weights
    }
    return RewardMix(rewards, config.weights, {**RANGES, **config.ranges})


def refuse_tokens(config: RewardConfig) -> None:
    """Raise ValueError when a reward of `config` reads tokens: audio files have none."""
    if PREFERENCE in config.weights:
        raise ValueError(
            f"the reward {PREFERENCE!r} reads the tokens of clips that a policy played: "
            "audio files have none"
        )


def failures(batch: RewardBatch) -> dict[str, int]:
    """Clips that each reward could not score."""
    return {name: int(np.isnan(term).sum()) for name, term in batch.terms.items()}


def _survive(
    name: str, reward: Reward, prompts: Sequence[Prompt], clips: Clips
) -> NDArray[np.float32]:
    """Scores float32 [B] of one reward, NaN where it failed in any way."""
    try:
        scores = np.array(reward(prompts, clips), np.float32)
        if scores.shape != (len(prompts),):
            raise ValueError(f"{scores.shape} scores for {len(prompts)} clips")
    except Exception:  # whatever a reward raises costs its samples, not the run
        logger.warning("reward %r failed on %d clips", name, len(prompts), exc_info=True)
        return np.full(len(prompts), np.nan, np.float32)
    scores[~np.isfinite(scores)] = np.nan
    if failed := int(np.isnan(scores).sum()):
        logger.warning("reward %r could not score %d of %d clips", name, failed, len(prompts))
    return scores
