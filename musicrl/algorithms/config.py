"""The settings of an algorithm, and which of them contradict each other.

Defaults are the paper's algorithm (section 3.2): REINFORCE, a learned value baseline and the exact
KL to the reference in the loss. What the paper does not have is marked as ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """How experience becomes a gradient."""

    name: Literal["reinforce", "ppo"] = "reinforce"
    """The rule: plain policy gradient (paper), or the clipped surrogate of PPO (ours)."""
    alpha: float = 0.003
    """KL strength in [0, 1): the objective is (1 - alpha) reward - alpha KL. The paper gives no
    value; 0.003 is the sibling paper WARM's."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL term acts. loss: differentiated at each sampled state (paper). reward (ours):
    each token pays beta k1 into the return, beta = alpha / (1 - alpha), which is the objective
    E[r] - beta KL of whole sequences (the one above, divided by 1 - alpha)."""
    kl_estimator: Literal["exact", "k1", "k2", "k3"] = "exact"
    """exact: full vocabulary (paper); k1, k2, k3: from the sampled tokens only (ours). In the
    reward only k1 is possible; in the loss see `functions.kl_loss` for what each one's gradient is.
    """
    kl_target: float | None = None
    """KL of a sequence, nats, that `alpha` is adapted to reach (none: alpha is fixed). Ours."""
    report_kl: bool = True
    """Report the KL to the reference; without it and with alpha 0 the reference is never run."""
    baseline: Literal["value", "group_mean", "none"] = "value"
    """Subtracted from the return: a learned value network (paper), the mean of the prompt's other
    samples (ours), or nothing."""
    advantage_normalisation: Literal["none", "batch"] = "none"
    """batch: advantages of an update get mean 0 and standard deviation 1. Ours."""
    clip_ratio: float | None = None
    """PPO's clip of the importance ratio, 0.2 say; set exactly when `name` is ppo."""
    importance_cap: float | None = None
    """REINFORCE on stale samples: weight each token by its importance ratio, at most this (none:
    no weights; the paper is on-policy). Ours."""
    trace_cap: float | None = None
    """V-trace on stale samples (Espeholt et al. 2018): the value network's targets and the
    advantages are put together from its own values, a token at a time, as far as the samples are
    still likely; weights are at most this (their c; `importance_cap` is their rho). None: returns
    are those of the samples. Ours."""

    def __post_init__(self) -> None:
        for is_refused, reason in self._contradictions():
            if is_refused:
                raise ValueError(f"algorithm: {reason}")

    def _contradictions(self) -> list[tuple[bool, str]]:
        is_ppo, in_reward = self.name == "ppo", self.kl_in == "reward"
        clip, cap, target = self.clip_ratio, self.importance_cap, self.kl_target
        trace = self.trace_cap
        return [
            (self.name not in ("reinforce", "ppo"), f"name {self.name!r} is unknown"),
            (not 0 <= self.alpha < 1, f"alpha must be in [0, 1), got {self.alpha}"),
            (
                in_reward and self.kl_estimator != "k1",
                f"kl_in 'reward' needs kl_estimator 'k1', not {self.kl_estimator!r}",
            ),
            (in_reward and self.alpha == 0, "kl_in 'reward' has no effect with alpha 0"),
            (target is not None and self.alpha == 0, "kl_target cannot adapt alpha from 0"),
            (
                target is not None and not target > 0,
                f"kl_target must be above 0 nats, got {target}",
            ),
            (
                self.alpha > 0 and not self.report_kl,
                "report_kl false saves nothing with alpha above 0",
            ),
            (is_ppo and clip is None, "name 'ppo' needs clip_ratio"),
            (not is_ppo and clip is not None, "clip_ratio is read only with name 'ppo'"),
            (
                clip is not None and not 0 < clip < 1,
                f"clip_ratio must be between 0 and 1, got {clip}",
            ),
            (
                is_ppo and cap is not None,
                "importance_cap is read only with name 'reinforce'; ppo clips by clip_ratio",
            ),
            (cap is not None and not cap >= 1, f"importance_cap must be 1 or more, got {cap}"),
            (
                trace is not None and self.baseline != "value",
                f"trace_cap needs baseline 'value', not {self.baseline!r}",
            ),
            (
                trace is not None and (cap is None or not 0 < trace <= cap),
                f"trace_cap must be above 0 and at most importance_cap, got {trace} and {cap}",
            ),
        ]
