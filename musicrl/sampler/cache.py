"""Keys and values of the sampler: a prompt's stored once, each sample's in its own rows.

    prompt [L, 2, P, Hkv, C, D]      written by prefill, read by the G samples of the prompt
    own    [L, 2, P*G, Hkv, S, D]    one more of S positions written by every step

Rows p*G .. p*G + G-1 belong to prompt p. It knows neither tokens nor how attention mixes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, of prompts and of their samples."""

    def __init__(
        self,
        *,
        num_prompts: int,
        samples_per_prompt: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        prompt_len: int,
        num_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        rows = num_prompts * samples_per_prompt
        heads = (num_kv_heads, prompt_len, head_dim)
        own = (num_kv_heads, num_steps, head_dim)
        self.prompt = torch.zeros(num_layers, 2, num_prompts, *heads, device=device)
        self.own = torch.zeros(num_layers, 2, rows, *own, device=device)
        self.num_steps = num_steps
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.length = 0
        """Positions of `own` that are in use."""

    def write_prompt(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep the keys and values [P, C, Hkv, D] of all the prompts' positions."""
        self.prompt[layer, 0].copy_(key.transpose(1, 2))
        self.prompt[layer, 1].copy_(value.transpose(1, 2))

    def advance(self) -> None:
        """Open the next position; raises ValueError when all `num_steps` are used."""
        if self.length == self.num_steps:
            raise ValueError(f"the cache holds {self.num_steps} steps and all are used")
        self.length += 1

    def rewind(self) -> None:
        """Forget the samples' positions."""
        self.length = 0

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep the keys and values [P*G, Hkv, D] of the open position."""
        self.own[layer, 0, :, :, self.length - 1] = key
        self.own[layer, 1, :, :, self.length - 1] = value

    def read(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys and values of the prompts [P, Hkv, C, D], then of the samples [P*G, Hkv, s, D]."""
        own = self.own[layer, :, :, :, : self.length]
        return self.prompt[layer, 0], self.prompt[layer, 1], own[0], own[1]
