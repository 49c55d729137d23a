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
from musicrl.sampler.draws import Draws
from musicrl.sampler.graphs import Graphs
from musicrl.sampler.randomness import noise_grid
from musicrl.sampler.sampling import Drawn, SamplingConfig
from musicrl.sampler.scheduler import Plan, positions_of
from musicrl.sampler.sequence import Sequence


class Runner:
    """A policy with its cache."""

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        cache: DecodingCache,
        *,
        max_samples: int,
        graphs: Graphs | None = None,
    ) -> None:
        """`graphs`: recorded steps to replay, of at most `max_samples`."""
        self.policy = policy
        self.config = config
        self.cache = cache
        self.max_samples = max_samples
        self.graphs = graphs
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
        if self.graphs is None:
            drawn = self._decode(previous, rows, noise)
        else:
            graph = self.graphs.start(previous, rows, self.max_samples)
            drawn = [graph.step(each) for each in noise]
        self._hand_out(sequences, drawn)

    def _decode(self, previous: Tensor, rows: Rows, noise: Tensor) -> list[Drawn]:
        """The draws of each step, tokens [B, K], from those before and noise [num_steps, K, B]."""
        drawn = []
        for step, each in enumerate(noise):
            ahead = rows.ahead(step)
            hidden = self.policy.step(self._for_branches(previous), ahead, self.cache)
            draws = Draws(self.config, self.cache, each)
            previous = self.policy.emit(hidden, ahead, self.cache, draws)[: len(previous)]
            drawn.append(Drawn(previous, draws.logprobs, draws.kept))
        return drawn

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

    def _hand_out(self, sequences: Ordered[Sequence], drawn: Ordered[Drawn]) -> None:
        tokens, logprobs, kept = zip(*drawn, strict=True)
        second = _columns(logprobs)
        if not np.isfinite(second).all():
            raise ValueError("the policy's logits are not finite: its weights hold NaN or infinity")
        first = _columns(tokens).astype(np.int16)
        bits = [each for each in kept if each is not None]
        third = _columns(bits) if bits else None
        for row, sequence in enumerate(sequences):
            steps = slice(sequence.step, sequence.step + len(drawn))
            sequence.tokens[steps] = first[row]
            sequence.logprobs[steps] = second[row]
            if sequence.kept is not None and third is not None:
                sequence.kept[steps] = third[row]
            sequence.step += len(drawn)

    def _integers(self, numbers: Ordered[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


def _noise(sequences: Ordered[Sequence], num_steps: int, num_streams: int) -> NDArray[np.float64]:
    """The uniforms of the next steps' cells, [num_steps, K, B]."""
    seeds = np.array([sequence.seed for sequence in sequences], dtype=np.uint64)
    reached = np.array([sequence.step for sequence in sequences])
    return noise_grid(seeds, num_steps, num_streams, after=reached)


def _columns(parts: Ordered[Tensor]) -> NDArray[Any]:
    """[B, ...] of each step as one array [B, num_steps, ...]."""
    return torch.stack(list(parts), dim=1).cpu().numpy()


def _last_tokens(sequence: Sequence) -> list[int]:
    """Of the step before the next, -1 before the first."""
    if sequence.step == 0:
        return [-1] * sequence.tokens.shape[1]
    last: list[int] = sequence.tokens[sequence.step - 1].tolist()
    return last
