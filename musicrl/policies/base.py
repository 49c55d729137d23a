"""The policy protocol: what sampler, learner and pretraining may ask of a token model.

A policy owns its layout and its networks. It knows neither rewards nor algorithms nor processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from musicrl.layout import Layout
from musicrl.sampler.ops import Ops

Draw = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(stream k, logits [B, V_k]) -> (tokens int64 [B], log-probabilities float32 [B])."""


class Policy(Protocol):
    """An autoregressive model of a grid of tokens, conditioned on C discrete tokens per clip."""

    @property
    def layout(self) -> Layout: ...

    @property
    def num_steps(self) -> int: ...

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Teacher-forced logits float32 [B, S, K, V] of every cell, from tokens int64 [B, S, K]
        and conditions int64 [B, C]. Cells outside a stream's vocabulary hold -inf."""
        ...

    def new_cache(self, num_prompts: int, samples_per_prompt: int, num_steps: int, ops: Ops) -> Any:
        """An empty cache for B = num_prompts x samples_per_prompt rows of `num_steps` steps, the
        samples of a prompt adjacent. `ops` are the operations to decode with: they know the weights
        of this call."""
        ...

    def prefill(self, conditions: Tensor, cache: Any) -> None:
        """Encode the prompts, conditions int64 [P, C], into the shared part of `cache`."""
        ...

    def step(self, previous: Tensor | None, cache: Any) -> Tensor:
        """Hidden state [B, D] of the next step, from the tokens int64 [B, K] of the previous one
        (None before the first). Appends to `cache`."""
        ...

    def emit(self, hidden: Tensor, cache: Any, draw: Draw) -> tuple[Tensor, Tensor]:
        """Draw the K tokens of a step from its hidden state: tokens int64 [B, K] and their
        log-probabilities float32 [B, K]."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]: ...
