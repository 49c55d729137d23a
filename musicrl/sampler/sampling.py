"""THE definition of the policy's distribution; sampler and learner both call it.

    logits -> guidance -> temperature -> top-k, or the set that the sampler kept -> normalise

Knows logits and settings; not who makes logits, and no cell's place in the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.bounds import at_least

Backend = Literal["auto", "reference", "cpu", "flash"]
Precision = Literal["float32", "bfloat16"]
NO_CONDITION = -1
"""Every conditioning token of the null prompt, which guidance leads away from."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn. Defaults are the paper's (section 4.2): no truncation is mentioned."""

    temperature: float = 0.99
    top_k: int = 0
    """Keep the k most probable tokens of each stream (0: all)."""
    guidance: float = 1.0
    """Classifier-free guidance: logits are null + guidance x (conditioned - null), which costs twice
    the work (1: none)."""
    backend: Backend = "auto"
    """What computes a decoding step: "cpu" (oneDNN and C kernels, built at first use), "reference"
    (plain torch, on every device), "flash" (flash-attn, on a GPU), or "auto", the fastest exact one
    that runs here."""
    precision: Precision = "float32"
    """Of the products with weights, except those that make logits, and of cached keys and values:
    "bfloat16" is faster where the processor has it, and puts log-probabilities off by about 0.01."""
    max_rows: int = 0
    """Samples that are decoded at once; others wait for their turn (0: all of a call)."""
    num_blocks: int = 0
    """Blocks of the cache. When they run out, the samples that came last give theirs back and are
    taken up again later (0: as many as the samples need)."""
    block_size: int = 0
    """Positions of a block (0: 64 on the CPU, 256 on a GPU, which flash-attn asks for)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        at_least(0, top_k=self.top_k, max_rows=self.max_rows)
        at_least(0, num_blocks=self.num_blocks, block_size=self.block_size)
        if self.precision != "float32" and self.backend == "reference":
            raise ValueError("precision bfloat16 needs backend cpu or flash, got reference")
        if self.precision != "bfloat16" and self.backend == "flash":
            raise ValueError("backend flash needs precision bfloat16: flash-attn has no float32")


class Drawn(NamedTuple):
    """One token of each of B rows; of cells, one of each [B, K]."""

    tokens: Tensor
    """int64 [B] or [B, K]."""
    logprobs: Tensor
    """float32 of the same shape, nats."""
    kept: Tensor | None
    """uint8 [..., ceil(V / 8)]: the set that top-k left to draw from, a bit a token, the first token
    in the lowest bit. None without top-k."""


class TokenModel(Protocol):
    """The part of a policy that has logits of whole grids: called, its module's hooks run too."""

    def __call__(self, tokens: Tensor, conditions: Tensor) -> Tensor: ...


def grid_log_probs(
    policy: TokenModel,
    tokens: Tensor,
    conditions: Tensor,
    config: SamplingConfig,
    kept: Tensor | None = None,
) -> Tensor:
    """Log-distributions [B, S, K, V] of the cells of tokens [B, S, K], conditions [B, C]; `kept`
    uint8 [B, S, K, ceil(V / 8)] as the sampler returned it."""
    logits = policy(tokens, conditions)
    if config.guidance != 1:
        null = policy(tokens, torch.full_like(conditions, NO_CONDITION))
        logits = guide(logits, null, config.guidance)
    return log_probs(logits, config, kept)


def guide(conditioned: Tensor, null: Tensor, scale: float) -> Tensor:
    """Guided logits of the same shape [..., V] (Ho and Salimans 2022, on logits); -inf stays."""
    outside = torch.isneginf(conditioned)
    conditioned, null = (x.float().masked_fill(outside, 0.0) for x in (conditioned, null))
    return (null + scale * (conditioned - null)).masked_fill(outside, -torch.inf)


def log_probs(logits: Tensor, config: SamplingConfig, kept: Tensor | None = None) -> Tensor:
    """Normalised log-distribution [..., V] that tokens are drawn from, nats, float32.

    Logits outside a stream's vocabulary are -inf and stay so. With top-k, all tokens that tie with
    the k-th logit are kept; or those of `kept` uint8 [..., ceil(V / 8)], so that a learner whose
    roundings differ replays the set that the sampler drew from.
    """
    scaled = logits.float()
    if config.temperature != 1:
        scaled = scaled / config.temperature
    if kept is not None:
        scaled = scaled.masked_fill(~unpack(kept, scaled.shape[-1]), -torch.inf)
    elif 0 < config.top_k < scaled.shape[-1]:
        kth = scaled.topk(config.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    return torch.log_softmax(scaled, dim=-1)


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Drawn:
    """One token per row by inverse CDF.

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
    kept = pack(logprobs > -torch.inf) if config.top_k > 0 else None
    return Drawn(tokens[:, 0], logprobs.gather(1, tokens)[:, 0], kept)


def draw_cells(
    logits: Tensor, is_empty: Tensor | None, uniform: Tensor, config: SamplingConfig
) -> Drawn:
    """One token of each cell, tokens [B, K], from `uniform` float64 [K, B].

    `logits` [B, K, V], or to be guided [2 B, K, V]: the prompts' rows, then the null prompt's.
    `is_empty` bool [B, K] (of the prompts' rows) adds a special token, number V: cells that are
    empty are certain of it, others never draw it. Without it there is no such token.
    """
    if len(logits) > uniform.shape[1]:
        conditioned, null = logits.chunk(2)
        logits = guide(conditioned, null, config.guidance)
    if is_empty is not None:
        logits = with_special(logits, is_empty)
    tokens, logprobs, kept = draw(logits.flatten(0, 1), uniform.T.flatten(), config)
    cells = logits.shape[:2]
    return Drawn(
        tokens.view(cells), logprobs.view(cells), None if kept is None else kept.view(*cells, -1)
    )


def with_special(logits: Tensor, is_empty: Tensor) -> Tensor:
    """Logits [..., V] and the special token's, [..., V + 1]: certain where bool [...] says that a
    cell is empty, impossible elsewhere."""
    whole = F.pad(logits, (0, 1), value=-torch.inf)
    certain = whole.new_full((whole.shape[-1],), -torch.inf)
    certain[-1] = 0.0
    return torch.where(is_empty[..., None], certain, whole)


def pack(flags: Tensor) -> Tensor:
    """Bits of bool [..., V] as uint8 [..., ceil(V / 8)], the first in the lowest bit."""
    whole = F.pad(flags, (0, -flags.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bits: Tensor = (whole << torch.arange(8, device=flags.device)).sum(-1)
    return bits.to(torch.uint8)


def unpack(bits: Tensor, count: int) -> Tensor:
    """The first `count` flags, bool [..., count], of what `pack` made."""
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    flags = (bits[..., None] >> shifts & 1).flatten(-2).bool()
    return flags[..., :count]
