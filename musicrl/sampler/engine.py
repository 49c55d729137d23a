"""The sampler: prompts to grids of tokens with the log-probability of every token.

It owns the loop over the grid and the randomness; what a step computes is the policy's, what the
distribution is sampling.py's. It knows neither rewards nor weights' versions nor processes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.policies.base import Policy
from musicrl.sampler.ops import Ops, make_ops
from musicrl.sampler.randomness import uniforms
from musicrl.sampler.sampling import SamplingConfig


class Engine:
    """Samples a policy, with the weights that it has at the time of the call."""

    def __init__(self, policy: Policy, config: SamplingConfig) -> None:
        self.policy = policy
        self.config = config

    @torch.inference_mode()
    def generate(
        self,
        conditions: Tensor,
        *,
        samples_per_prompt: int,
        seeds: NDArray[np.uint64],
        num_steps: int | None = None,
    ) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Sample each prompt `samples_per_prompt` times, as adjacent rows.

        From conditions int64 [P, C] and seeds uint64 [P*G] to tokens int16 [P*G, S, K] and their
        log-probabilities float32 [P*G, S, K], nats, under the exact distribution sampled from.
        S is `num_steps`, or the policy's own. A row depends on its condition and seed alone.
        Raises ValueError for sizes that do not fit and when the policy's logits are not finite.
        """
        S = self.policy.num_steps if num_steps is None else num_steps
        B = self._rows(conditions, samples_per_prompt, seeds, S)
        K = self.policy.layout.num_streams
        noise = torch.from_numpy(noise_grid(seeds, S, K)).to(conditions.device)
        tokens = torch.empty(B, S, K, dtype=torch.int64, device=conditions.device)
        logprobs = torch.empty(B, S, K, device=conditions.device)
        ops = make_ops(self.config, num_rows=B, device=conditions.device)
        cache = self.policy.new_cache(conditions.shape[0], samples_per_prompt, S, ops)
        self.policy.prefill(conditions, cache)
        previous: Tensor | None = None
        for s in range(S):
            hidden = self.policy.step(previous, cache)
            draw = partial(self._draw, ops, noise[s])
            previous, logprob = self.policy.emit(hidden, cache, draw)
            tokens[:, s], logprobs[:, s] = previous, logprob
        if not bool(torch.isfinite(logprobs).all()):
            raise ValueError("the policy's logits are not finite: its weights hold NaN or infinity")
        return tokens.to(torch.int16).cpu().numpy(), logprobs.cpu().numpy()

    def _draw(self, ops: Ops, noise: Tensor, k: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities [B] of stream k, from noise [K, B]."""
        return ops.draw(logits, noise[k], self.config)

    def _rows(
        self, conditions: Tensor, samples_per_prompt: int, seeds: NDArray[np.uint64], steps: int
    ) -> int:
        if not 1 <= steps <= self.policy.num_steps:
            raise ValueError(f"num_steps must be 1 to {self.policy.num_steps}, got {steps}")
        rows = conditions.shape[0] * samples_per_prompt
        if rows == 0 or seeds.shape != (rows,):
            raise ValueError(
                f"{conditions.shape[0]} prompts x {samples_per_prompt} samples need as many seeds, "
                f"at least one, got {seeds.size}"
            )
        return rows


def noise_grid(seeds: NDArray[np.uint64], num_steps: int, num_streams: int) -> NDArray[np.float64]:
    """The uniforms of every cell, [S, K, B]."""
    steps, streams = np.arange(num_steps), np.arange(num_streams)
    return uniforms(seeds, steps[:, None, None], streams[None, :, None])
