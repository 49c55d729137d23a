"""Runs a policy for the sequences of a round: encodes, copies blocks, decodes, hands out results.

It knows tensors and where sequences' blocks are, and not who is decoded when.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.policies.base import Policy
from musicrl.policies.cache import DecodingCache
from musicrl.sampler.cache import Rows, Span
from musicrl.sampler.randomness import noise_grid
from musicrl.sampler.sampling import Drawn, SamplingConfig, guide
from musicrl.sampler.scheduler import Plan, positions_of
from musicrl.sampler.sequence import Sequence


class Runner:
    """A policy with its cache."""

    def __init__(self, policy: Policy, config: SamplingConfig, cache: DecodingCache) -> None:
        self.policy = policy
        self.config = config
        self.cache = cache
        self._device = cache.kv.data.device

    def prefill(self, plan: Plan) -> None:
        """Encode what the plan asks for, then copy the blocks of forks."""
        if plan.prefills:
            branches, sequences = zip(*plan.prefills, strict=True)
            span = Span.of(
                [branch.blocks for branch in branches],
                positions_of(plan.prefills, self.policy.num_prefix),
                block_size=self.cache.kv.block_size,
                device=self._device,
            )
            conditions = self._integers([branch.conditions for branch in branches])
            slots = self._integers([branch.slot for branch in branches])
            self.policy.prefill(conditions, self._history(sequences), slots, span, self.cache)
        shared = self.policy.num_prefix % self.cache.kv.block_size
        self.cache.kv.copy_blocks(plan.copies, num_positions=shared)

    def run(self, sequences: Ordered[Sequence], num_steps: int) -> None:
        """Take `num_steps` steps with every sequence.

        Raises ValueError when the policy's logits are not finite; the sequences are then as before.
        """
        rows, streams = self._rows(sequences), self.policy.layout.num_streams
        previous = self._integers([_last_tokens(sequence) for sequence in sequences])
        noise = torch.from_numpy(_noise(sequences, num_steps, streams)).to(self._device)
        tokens, drawn = [], []
        for step in range(num_steps):
            ahead = rows.ahead(step)
            hidden = self.policy.step(self._for_branches(previous), ahead, self.cache)
            draw = Draws(self.config, self.cache, noise[step])
            previous = self.policy.emit(hidden, ahead, self.cache, draw)[: len(sequences)]
            tokens.append(previous)
            drawn.append(draw)
        self._hand_out(sequences, torch.stack(tokens), drawn)

    def _rows(self, sequences: Ordered[Sequence]) -> Rows:
        """Of the prompts' branches, then of the null prompt's, for the step that comes first."""
        ordered = [
            (branch, s)
            for branch_of in zip(*(s.branches for s in sequences), strict=True)
            for branch, s in zip(branch_of, sequences, strict=True)
        ]
        width = max(len(branch.blocks) for branch, _ in ordered)
        tables = [branch.blocks + [0] * (width - len(branch.blocks)) for branch, _ in ordered]
        lens = [self.policy.num_prefix + sequence.step + 1 for _, sequence in ordered]
        return Rows(
            tables=self._integers(tables).to(torch.int32),
            lens=self._integers(lens).to(torch.int32),
            slots=self._integers([branch.slot for branch, _ in ordered]),
            steps=self._integers([sequence.step for _, sequence in ordered]),
            num_steps=self._integers([sequence.num_steps for _, sequence in ordered]),
        )

    def _for_branches(self, previous: Tensor) -> Tensor:
        return previous if self.config.guidance == 1 else torch.cat([previous, previous])

    def _history(self, sequences: Ordered[Sequence]) -> Tensor:
        """Tokens drawn so far, int64 [P, s, K], -1 past a sequence's own."""
        longest = max(sequence.step for sequence in sequences)
        streams = self.policy.layout.num_streams
        history = np.full((len(sequences), longest, streams), -1, dtype=np.int64)
        for row, sequence in zip(history, sequences, strict=True):
            row[: sequence.step] = sequence.tokens[: sequence.step]
        return torch.from_numpy(history).to(self._device)

    def _hand_out(self, sequences: Ordered[Sequence], tokens: Tensor, drawn: list[Draws]) -> None:
        logprobs = torch.stack([draw.logprobs for draw in drawn])
        if not bool(torch.isfinite(logprobs).all()):
            raise ValueError("the policy's logits are not finite: its weights hold NaN or infinity")
        first = _columns(tokens.to(torch.int16))
        second = _columns(logprobs)
        third = _columns(torch.stack([draw.kept for draw in drawn])) if self.config.top_k else None
        for row, sequence in enumerate(sequences):
            steps = slice(sequence.step, sequence.step + len(tokens))
            sequence.tokens[steps] = first[row]
            sequence.logprobs[steps] = second[row]
            if sequence.kept is not None and third is not None:
                sequence.kept[steps] = third[row]
            sequence.step += len(tokens)

    def _integers(self, numbers: Ordered[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


class Draws:
    """The draws of one step, which `Policy.emit` asks for stream by stream."""

    def __init__(self, config: SamplingConfig, cache: DecodingCache, noise: Tensor) -> None:
        """From noise float64 [K, B]."""
        self._config = config
        self._ops = cache.ops
        self._noise = noise
        self._drawn: list[Drawn] = []

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
        return torch.stack([drawn.logprobs for drawn in self._drawn], dim=1)

    @property
    def kept(self) -> Tensor:
        """uint8 [B, K, ceil(V / 8)]; zeros past a smaller vocabulary."""
        bits = [drawn.kept for drawn in self._drawn if drawn.kept is not None]
        width = max(each.shape[1] for each in bits)
        padded = [torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in bits]
        return torch.stack(padded, dim=1)


def _noise(sequences: Ordered[Sequence], num_steps: int, num_streams: int) -> NDArray[np.float64]:
    """The uniforms of the next steps' cells, [num_steps, K, B]."""
    seeds = np.array([sequence.seed for sequence in sequences], dtype=np.uint64)
    reached = np.array([sequence.step for sequence in sequences])
    return noise_grid(seeds, num_steps, num_streams, after=reached)


def _columns(parts: Tensor) -> NDArray[Any]:
    """[num_steps, B, ...] as an array [B, num_steps, ...]."""
    return parts.cpu().numpy().swapaxes(0, 1)


def _last_tokens(sequence: Sequence) -> list[int]:
    """Of the step before the next, -1 before the first."""
    if sequence.step == 0:
        return [-1] * sequence.tokens.shape[1]
    last: list[int] = sequence.tokens[sequence.step - 1].tolist()
    return last
