"""PPO's clipped surrogate in place of REINFORCE: an option of ours, not of the paper.

It makes several epochs over the same samples, or stale ones, safe. Ratios are per token. Baseline,
return and KL are those of every rule here; there is no GAE (gamma = 1, the reward comes last).
"""

from __future__ import annotations

from torch import Tensor

from musicrl.algorithms import functions
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.algorithms.gradient import PolicyGradient


def ppo(config: AlgorithmConfig) -> PolicyGradient:
    """-min(rho_t A_t, clip(rho_t) A_t) with `clip_ratio`."""
    clip = config.clip_ratio
    assert clip is not None  # AlgorithmConfig has refused it

    def clipped(logp: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        return functions.clipped_loss(ratio=ratio, advantages=advantages, clip_ratio=clip)

    return PolicyGradient(config, clipped, lambda ratio: (ratio - 1).abs() > clip)
