"""The algorithm protocol: a batch of experience and the models' outputs to one loss.

An algorithm is pure: it holds settings and one number, the strength of the KL term, never networks.
Every sample that reaches it is valid; samples whose reward failed are dropped before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The valid samples of one update (or microbatch), as tensors."""

    conditions: Tensor
    """int64 [B, C]."""
    tokens: Tensor
    """int64 [B, S, K]."""
    behaviour_logprobs: Tensor
    """float32 [B, S, K], nats, of the sampler."""
    rewards: Tensor
    """float32 [B]: the mix, once per clip, paid at the last token (gamma = 1)."""
    group: Tensor
    """int64 [B]: samples of one prompt share a number."""
    kept: Tensor | None = None
    """uint8 [B, S, K, ceil(V / 8)]: the tokens that the sampler's top-k left to draw from."""
    reference_logprobs: Tensor | None = None
    """float32 [B, S, K], nats: of the tokens under the frozen reference, where the algorithm
    `needs_reference_tokens`."""
    current_logprobs: Tensor | None = None
    """float32 [B, S, K], nats: of the tokens under the policy before the update, where the algorithm
    `needs_current`; so are `values`."""
    values: Tensor | None = None
    """float32 [B, S, K]: of the value network before the update."""

    @property
    def num_samples(self) -> int:
        return self.tokens.shape[0]

    def rows(self, index: Tensor) -> Batch:
        """The samples of `index`, int64 [b]."""

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return Batch(
            conditions=self.conditions[index],
            tokens=self.tokens[index],
            behaviour_logprobs=self.behaviour_logprobs[index],
            rewards=self.rewards[index],
            group=self.group[index],
            kept=part(self.kept),
            reference_logprobs=part(self.reference_logprobs),
            current_logprobs=part(self.current_logprobs),
            values=part(self.values),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOut:
    """A loss to differentiate and detached figures of every token to report."""

    loss: Tensor
    """float32 []: SUM over the samples; the caller divides by the samples of the update."""
    ratio: Tensor
    """float32 [B, S, K]: probability under the policy over that under the sampler."""
    entropy: Tensor
    """float32 [B, S, K], nats."""
    kl: Tensor | None
    """float32 [B, S, K], nats: of the policy to the reference where the reference's distribution is
    at hand, else the k1 estimate for the policy that sampled; None without a reference."""


class Algorithm(Protocol):
    """A policy-gradient rule. `loss` receives normalised log-distributions, not raw logits."""

    alpha: float
    """Strength of the KL term, in [0, 1); changes only in `adapt`."""

    @property
    def needs_value(self) -> bool: ...

    @property
    def needs_reference_tokens(self) -> bool:
        """Whether `Batch.reference_logprobs` is read."""
        ...

    @property
    def needs_reference_distribution(self) -> bool:
        """Whether `loss` reads the full log-distributions of the reference."""
        ...

    @property
    def needs_current(self) -> bool:
        """Whether `returns` reads what the networks say of the samples before the update."""
        ...

    def returns(self, batch: Batch) -> Tensor:
        """Return of the state before each token, float32 [B, S, K]: what the value network is to
        learn."""
        ...

    def advantages(self, batch: Batch, returns: Tensor, values: Tensor | None) -> Tensor:
        """Weight of each token's log-probability, float32 [B, S, K], over a WHOLE update."""
        ...

    def loss(
        self, batch: Batch, advantages: Tensor, logprobs: Tensor, reference: Tensor | None
    ) -> LossOut:
        """Loss of (a part of) an update from log-distributions float32 [B, S, K, V] of the policy
        and of the frozen reference (exactly those that are sampled from; -inf outside a stream's
        vocabulary)."""
        ...

    def is_limited(self, ratio: Tensor) -> Tensor | None:
        """bool [B, S, K]: tokens whose ratio is clipped or capped (None: the rule has no limit)."""
        ...

    def adapt(self, kl: float) -> None:
        """Move `alpha` by the observed KL of a sequence, nats (nothing without a target)."""
        ...
