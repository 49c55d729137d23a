"""THE definition of the policy's distribution; sampler and learner both call it.

Knows logits, a temperature, a top-k and the vocabulary of a stream. Guidance joins here when a
policy family needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "cpu"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn. Defaults are the paper's (section 4.2): no truncation is mentioned."""

    temperature: float = 0.99
    top_k: int = 0
    """Keep the k most probable tokens of each stream (0: all)."""
    backend: Backend = "auto"
    """What computes a decoding step: "cpu" (oneDNN and C kernels, built at first use), "reference"
    (plain torch, on every device), or "auto", the fastest that runs here."""
    precision: Precision = "float32"
    """Of the products with weights on backend cpu, except those that make logits: "bfloat16" is
    faster where the processor has it, and puts log-probabilities off by about 0.01."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if self.precision != "float32" and self.backend == "reference":
            raise ValueError("precision bfloat16 needs backend cpu, got reference")


def log_probs(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Normalised log-distribution [..., V] that tokens are drawn from, nats, float32.

    Logits outside a stream's vocabulary are -inf and stay so. With top-k, all tokens that tie with
    the k-th logit are kept.
    """
    scaled = logits.float() / config.temperature
    if 0 < config.top_k < scaled.shape[-1]:
        kth = scaled.topk(config.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    return torch.log_softmax(scaled, dim=-1)


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF: tokens int64 [B] and their log-probabilities float32 [B].

    `logits` [B, V], `uniform` float64 [B] in (0, 1). A token of probability zero is never drawn.
    Logits that are not finite give a token in range whose log-probability is NaN.
    """
    logprobs = log_probs(logits, config)
    cdf = logprobs.double().exp_().cumsum(dim=-1)
    total = cdf[:, -1:]
    # Below the total even when the product rounds up to it, so the search ends on a real rise.
    target = torch.minimum(
        uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    tokens = torch.searchsorted(cdf, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]
