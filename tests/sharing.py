"""What ranks train in tests, and what of: a small policy, random experience, ten updates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from musicrl.algorithms import make_algorithm
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.musiclm import MusicLM
from musicrl.policies.value import make_value_network
from musicrl.ranks import Ranks
from musicrl.sampler.sampling import SamplingConfig
from musicrl.types import Experience, Prompt, RewardBatch, Rollouts
from musicrl.update import PolicyUpdate
from musicrl.update_config import UpdateConfig

SAMPLING = SamplingConfig()
PAPER = AlgorithmConfig(alpha=0.01)
GROUPS = AlgorithmConfig(
    baseline="group_mean", kl_in="reward", kl_estimator="k1", alpha=0.01, importance_cap=2.0
)
PPO = AlgorithmConfig(name="ppo", clip_ratio=0.2, alpha=0.01, advantage_normalisation="batch")


def small_policy() -> MusicLM:
    torch.manual_seed(0)
    return MusicLM(
        MusicLMConfig(
            semantic_vocab=5,
            coarse_vocab=4,
            coarse_levels=1,
            codec_frames_per_step=2,
            num_steps=4,
            condition_levels=2,
            condition_vocab=6,
            width=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            depth_width=8,
            depth_layers=1,
            depth_heads=2,
        )
    )


def experience(seed: int, num_samples: int = 7) -> Experience:
    """Random clips of three prompts, one clip without a score."""
    random = np.random.default_rng(seed)
    group = (np.arange(num_samples) % 3).astype(np.int32)
    rewards = random.normal(size=num_samples).astype(np.float32)
    valid = np.arange(num_samples) != 2
    rollouts = Rollouts(
        prompts=tuple(Prompt(id=str(g), text="") for g in group),
        conditions=(group[:, None] + np.arange(2)).astype(np.int16),
        tokens=random.integers(0, 4, (num_samples, 4, 3)).astype(np.int16),
        logprobs=random.uniform(-1.7, -1.2, (num_samples, 4, 3)).astype(np.float32),
        group=group,
        seeds=np.arange(num_samples, dtype=np.uint64),
        version=np.full(num_samples, seed, np.int64),
    )
    return Experience(
        rollouts=rollouts, rewards=RewardBatch(total=rewards, terms={"r": rewards}, valid=valid)
    )


def new_update(
    policy: nn.Module,
    algorithm: AlgorithmConfig,
    config: UpdateConfig,
    ranks: Ranks | None = None,
    sampling: SamplingConfig = SAMPLING,
) -> PolicyUpdate:
    """Of a policy, with a value network of its dtype where the algorithm needs one."""
    rule = make_algorithm(algorithm)
    value = make_value_network(policy) if rule.needs_value else None
    if value is not None:
        value = value.to(next(policy.parameters()).dtype)
    return PolicyUpdate(policy, rule, sampling, config, value=value, ranks=ranks)


def trained(
    policy: nn.Module,
    algorithm: AlgorithmConfig,
    config: UpdateConfig,
    ranks: Ranks | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """What policy, value network and optimizers are after 10 updates, and the figures of each."""
    update = new_update(policy, algorithm, config, ranks)
    figures = [update.step([experience(version)]) for version in range(10)]
    return networks(update), figures


def networks(update: PolicyUpdate) -> dict[str, Tensor]:
    """Tensors of the networks that learn, whole."""
    named = {"policy": update.policy, "value": update._value}
    state = nn.ModuleDict({name: part for name, part in named.items() if part is not None})
    return state.state_dict()
