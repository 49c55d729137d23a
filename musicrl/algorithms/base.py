"""The algorithm protocol: a batch of experience and the models' outputs to one loss.

An algorithm is pure: it holds settings (and, for adaptive KL, one coefficient), never networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The samples of one update (or microbatch), as tensors."""

    tokens: Tensor
    """int64 [B, S, K]."""
    behaviour_logprobs: Tensor
    """float32 [B, S, K], nats, of the sampler."""
    rewards: Tensor
    """float32 [B]: the mix, once per clip, paid at the last token (gamma = 1)."""
    valid: Tensor
    """bool [B]: False where the reward failed."""
    group: Tensor
    """int64 [B]."""
    advantage_baseline: Tensor | None = None
    """float32 [B] when the algorithm computes a baseline over the whole update (group mean)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOut:
    """A scalar to differentiate and detached figures to report."""

    policy_loss: Tensor
    value_loss: Tensor | None
    metrics: Mapping[str, float]


class Algorithm(Protocol):
    """A policy-gradient rule. `loss` receives normalised log-distributions, not raw logits."""

    needs_value: bool
    needs_reference: bool

    def loss(
        self,
        batch: Batch,
        logprobs: Tensor,
        reference_logprobs: Tensor | None,
        values: Tensor | None,
    ) -> LossOut:
        """Losses of a batch from log-distributions float32 [B, S, K, V] (of the exact sampling
        distribution; -inf outside a stream's vocabulary), of the policy and of the frozen
        reference, and values float32 [B, S, K] of the states before each token."""
        ...
