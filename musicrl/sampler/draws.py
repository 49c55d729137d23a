"""The draws of one step, which a policy asks for stream by stream or all at once.

Guidance is mixed here: with it, logits come for the prompt's rows and for the null prompt's, and
both get the same token. It knows noise and settings, and nothing of sequences.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.policies.cache import DecodingCache
from musicrl.sampler.sampling import Drawn, SamplingConfig, guide


class Draws:
    """What `Policy.emit` draws with."""

    def __init__(self, config: SamplingConfig, cache: DecodingCache, noise: Tensor) -> None:
        """From noise float64 [K, B]."""
        self._config = config
        self._ops = cache.ops
        self._noise = noise
        self._drawn: list[Drawn] = []
        self._cells: Drawn | None = None

    def guided(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, W] of both branches, mixed where roundings may differ from the
        learner's, who mixes logits: linear heads then take half as long. Else as they are."""
        if self._config.guidance == 1 or self._config.precision == "float32":
            return hidden
        conditioned, null = hidden.chunk(2)
        return torch.lerp(null, conditioned, self._config.guidance)

    def cells(self, logits: Tensor, is_empty: Tensor | None) -> Tensor:
        """Tokens of all streams at once, [B, K], or with guidance [2 B, K] for both branches, from
        logits [B, K, V] of `guided` states, or [2 B, K, V] of both branches'; cells that are empty
        get the special token V, others never."""
        empty = None if is_empty is None else is_empty[: self._noise.shape[1]]
        self._cells = self._ops.draw_cells(logits, empty, self._noise, self._config)
        tokens = self._cells.tokens
        return tokens if self._config.guidance == 1 else torch.cat([tokens, tokens])

    def __call__(self, stream: int, logits: Tensor) -> Tensor:
        """Tokens [B], or with guidance [2 B] for both branches, from logits of as many rows."""
        is_guided = self._config.guidance != 1
        if is_guided:
            conditioned, null = logits.chunk(2)
            logits = guide(conditioned, null, self._config.guidance)
        drawn = self._ops.draw(logits, self._noise[stream], self._config)
        self._drawn.append(drawn)
        return torch.cat([drawn.tokens, drawn.tokens]) if is_guided else drawn.tokens

    @property
    def logprobs(self) -> Tensor:
        """float32 [B, K]."""
        if self._cells is not None:
            return self._cells.logprobs
        return torch.stack([drawn.logprobs for drawn in self._drawn], dim=1)

    @property
    def kept(self) -> Tensor | None:
        """uint8 [B, K, ceil(V / 8)], zeros past a smaller vocabulary; None without top-k."""
        if self._cells is not None:
            return self._cells.kept
        bits = [drawn.kept for drawn in self._drawn if drawn.kept is not None]
        if not bits:
            return None
        width = max(each.shape[1] for each in bits)
        padded = [F.pad(each, (0, width - each.shape[1])) for each in bits]
        return torch.stack(padded, dim=1)
