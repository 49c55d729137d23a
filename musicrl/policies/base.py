"""The policy protocol: what sampler, learner and pretraining may ask of a token model.

A policy owns its layout and its networks. It knows neither rewards nor algorithms nor processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from musicrl.layout import Layout
from musicrl.policies.cache import DecodingCache
from musicrl.sampler.cache import Rows, Span
from musicrl.sampler.ops import Ops


class Draw(Protocol):
    """What the tokens of a step are drawn with."""

    def __call__(self, stream: int, logits: Tensor) -> Tensor:
        """Tokens int64 [B] of one stream from logits [B, V_k]."""
        ...

    def guided(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, W] of which linear heads make logits for `cells`: fewer where both
        branches of guidance can be mixed before the heads."""
        ...

    def cells(self, logits: Tensor, is_empty: Tensor | None) -> Tensor:
        """Tokens int64 [B, K] of all streams from logits [B, K, V] of `guided` states; with bool
        [B, K], cells that are empty get the special token V, which the others never draw."""
        ...


class Policy(Protocol):
    """An autoregressive model of a grid of tokens, conditioned on C discrete tokens per clip.

    Conditions of -1 only are no condition: the prompt that guidance leads away from.
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def num_prefix(self) -> int:
        """Positions of the cache that prefill takes before the first step."""
        ...

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Teacher-forced logits float32 [B, S, K, V] of every cell, from tokens int64 [B, S, K]
        and conditions int64 [B, C]. Cells outside a stream's vocabulary hold -inf."""
        ...

    def __call__(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """`forward`, with what is hooked to it."""
        ...

    def new_cache(
        self, ops: Ops, *, num_rows: int, num_slots: int, num_blocks: int, block_size: int
    ) -> DecodingCache:
        """An empty cache of so many blocks, for at most `num_rows` rows of `num_slots` prompts.
        `ops` are the operations to decode with: they know the weights that are decoded with."""
        ...

    def prefill(
        self, conditions: Tensor, history: Tensor, slots: Tensor, span: Span, cache: DecodingCache
    ) -> None:
        """Encode P prompts, conditions int64 [P, C], into their `slots` int64 [P], and the steps
        that they already have, history int64 [P, s, K] (-1 past a row's own), into the blocks of
        `span`: `num_prefix` positions a row and one for each step."""
        ...

    def step(self, previous: Tensor, rows: Rows, cache: DecodingCache) -> Tensor:
        """Hidden state [B, D] of the next step, from the tokens int64 [B, K] of the previous one
        (-1 before the first). Appends to `cache`, where `rows` say."""
        ...

    def emit(self, hidden: Tensor, rows: Rows, cache: DecodingCache, draw: Draw) -> Tensor:
        """Draw the K tokens int64 [B, K] of a step from its hidden state [B, D]."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]: ...
