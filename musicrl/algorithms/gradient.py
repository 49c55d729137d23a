"""A policy-gradient algorithm, put together from its settings.

Every rule shares the return, the baseline and the KL term; they differ in the surrogate, a function
of the log-probabilities, the sampler's and the advantages, and in the ratio that it limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from musicrl.algorithms import functions
from musicrl.algorithms.base import Batch, LossOut
from musicrl.algorithms.config import AlgorithmConfig

Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log-probabilities, importance ratios, advantages), all [B, S, K] -> loss [B, S, K]."""
Limit = Callable[[Tensor], Tensor]
"""Importance ratios [B, S, K] -> bool [B, S, K], true where the surrogate clips or caps them."""


class PolicyGradient:
    """Minimises (1 - alpha) surrogate + alpha KL, summed over the S x K tokens of a clip (paper
    section 3.2 sums over t = 0..T). With the KL in the reward the loss is the surrogate alone.
    """

    def __init__(
        self, config: AlgorithmConfig, surrogate: Surrogate, limit: Limit | None = None
    ) -> None:
        self.config = config
        self.alpha = config.alpha
        self._surrogate = surrogate
        self._limit = limit

    @property
    def needs_value(self) -> bool:
        return self.config.baseline == "value"

    @property
    def needs_reference_tokens(self) -> bool:
        return self._needs_reference and self.config.kl_estimator != "exact"

    @property
    def needs_reference_distribution(self) -> bool:
        return self._needs_reference and self.config.kl_estimator == "exact"

    @property
    def _needs_reference(self) -> bool:
        return self.config.alpha > 0 or self.config.report_kl

    @property
    def needs_current(self) -> bool:
        return self.config.trace_cap is not None

    @property
    def beta(self) -> float:
        """Price of a nat of KL in units of reward."""
        return self.alpha / (1 - self.alpha)

    def returns(self, batch: Batch) -> Tensor:
        """Z_t = r, or r - beta sum_{i >= t} k1_i with the KL in the reward, [B, S, K]; the targets of
        V-trace where the batch has what these are made of."""
        if batch.values is not None:
            return self._targets(batch, batch.values)
        if self.config.kl_in == "loss":
            return functions.terminal_returns(rewards=batch.rewards, like=batch.behaviour_logprobs)
        return functions.reward_to_go(
            rewards=batch.rewards, penalties=self.beta * self._sampled_kl(batch)
        )

    def advantages(self, batch: Batch, returns: Tensor, values: Tensor | None) -> Tensor:
        """Returns less the baseline, [B, S, K]."""
        if batch.values is not None:
            advantages = functions.vtrace_advantages(
                rewards=self._token_rewards(batch), values=batch.values, targets=returns
            )
        else:
            advantages = returns - self._baseline(batch, returns, values)
        if self.config.advantage_normalisation == "batch":
            return functions.normalise(advantages)
        return advantages

    def _targets(self, batch: Batch, values: Tensor) -> Tensor:
        """V-trace targets, [B, S, K]."""
        config = self.config
        assert batch.current_logprobs is not None
        assert config.trace_cap is not None
        assert config.importance_cap is not None
        ratio = functions.importance_ratio(
            logp=batch.current_logprobs, behaviour_logp=batch.behaviour_logprobs
        )
        return functions.vtrace_targets(
            rewards=self._token_rewards(batch),
            values=values,
            ratio=ratio,
            cap=config.importance_cap,
            trace_cap=config.trace_cap,
        )

    def _token_rewards(self, batch: Batch) -> Tensor:
        """The clip's reward at its last token, and what KL costs at each, [B, S, K]."""
        rewards = torch.zeros_like(batch.behaviour_logprobs)
        rewards.flatten(1)[:, -1] = batch.rewards
        if self.config.kl_in == "reward":
            rewards = rewards - self.beta * self._sampled_kl(batch)
        return rewards

    def _baseline(self, batch: Batch, returns: Tensor, values: Tensor | None) -> Tensor:
        if self.config.baseline == "value":
            assert values is not None
            return values
        if self.config.baseline == "group_mean":
            return functions.group_mean_baseline(returns=returns, group=batch.group)
        return torch.zeros_like(returns)

    def loss(
        self, batch: Batch, advantages: Tensor, logprobs: Tensor, reference: Tensor | None
    ) -> LossOut:
        """Loss summed over the samples, with its figures; see `Algorithm.loss`."""
        logp = functions.token_logprobs(logprobs=logprobs, tokens=batch.tokens)
        ratio = functions.importance_ratio(logp=logp, behaviour_logp=batch.behaviour_logprobs)
        loss = self._surrogate(logp, ratio, advantages).sum()
        kl = self._kl(batch, logprobs, reference)
        if self.alpha > 0 and self.config.kl_in == "loss":
            kl_term = kl if self.config.kl_estimator == "exact" else self._kl_term(batch, logp)
            assert kl_term is not None
            loss = (1 - self.alpha) * loss + self.alpha * kl_term.sum()
        return LossOut(
            loss=loss,
            ratio=ratio.detach(),
            entropy=functions.entropy(logprobs.detach()),
            kl=None if kl is None else kl.detach(),
        )

    def _kl(self, batch: Batch, logprobs: Tensor, reference: Tensor | None) -> Tensor | None:
        """To report, and with the exact estimator to differentiate."""
        if self.needs_reference_distribution:
            assert reference is not None
            own = logprobs if self.alpha > 0 else logprobs.detach()
            return functions.exact_kl(logprobs=own, reference=reference)
        return None if batch.reference_logprobs is None else self._sampled_kl(batch)

    def _sampled_kl(self, batch: Batch) -> Tensor:
        """k1 of the policy that sampled: unbiased only under its own log-probabilities."""
        assert batch.reference_logprobs is not None
        return functions.kl_estimate(
            logp=batch.behaviour_logprobs, reference_logp=batch.reference_logprobs, kind="k1"
        )

    def _kl_term(self, batch: Batch, logp: Tensor) -> Tensor:
        assert batch.reference_logprobs is not None
        kind = cast(functions.Estimator, self.config.kl_estimator)
        return functions.kl_loss(logp=logp, reference_logp=batch.reference_logprobs, kind=kind)

    def is_limited(self, ratio: Tensor) -> Tensor | None:
        """Where the surrogate clips or caps the ratio, bool [B, S, K]; None without a limit."""
        return None if self._limit is None else self._limit(ratio)

    def adapt(self, kl: float) -> None:
        """Move beta, and alpha with it, towards the KL target of a sequence, nats."""
        if self.config.kl_target is None:
            return
        beta = functions.adaptive_coefficient(
            coefficient=self.beta, kl=kl, target=self.config.kl_target
        )
        self.alpha = beta / (1 + beta)
