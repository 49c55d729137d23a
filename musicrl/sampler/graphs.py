"""Decoding steps that are recorded once and replayed: CUDA graphs.

A graph replays the same kernels on the same addresses, so that every input lies in a buffer of fixed
size: samples beyond those asked for are padding, which writes to a block of nobody's. Recording is
given from outside; on the CPU tests record by calling again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from musicrl.policies.base import Policy
from musicrl.policies.cache import DecodingCache
from musicrl.sampler.cache import Rows
from musicrl.sampler.draws import Draws
from musicrl.sampler.sampling import Drawn, SamplingConfig

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""(work) -> what does the work again."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Samples that graphs are recorded for."""


def record_cuda(work: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of `work`, after it was done once aside (which packs weights and fills tables)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class StepGraph:
    """One step of `size` samples whose tables are `width` blocks wide."""

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        cache: DecodingCache,
        *,
        size: int,
        width: int,
        scratch: int,
        record: Record,
    ) -> None:
        """`scratch` is the block that padding writes to."""
        self.size, self._scratch = size, scratch
        self._policy, self._config, self._cache = policy, config, cache
        self._branches = 1 if config.guidance == 1 else 2
        count, streams, device = size * self._branches, policy.layout.num_streams, _device(cache)
        small = partial(torch.full, dtype=torch.int32, device=device)
        long = partial(torch.full, dtype=torch.int64, device=device)
        self._rows = Rows(
            tables=small((count, width), scratch),
            lens=small((count,), 1),
            slots=long((count,), 0),
            steps=long((count,), 0),
            num_steps=long((count,), policy.num_steps),
        )
        self._previous = long((count, streams), -1)
        self._noise = torch.full((streams, size), 0.5, dtype=torch.float64, device=device)
        self._drawn: Drawn | None = None
        self._replay = record(self._step)

    def load(self, previous: Tensor, rows: Rows) -> None:
        """Start from tokens int64 [B, K] and rows of B <= size samples, one after the other for each
        branch."""
        own, given = self._rows, rows
        for mine, theirs, empty in (
            (own.tables, given.tables, self._scratch),
            (own.lens, given.lens, 1),
            (own.slots, given.slots, 0),
            (own.steps, given.steps, 0),
            (own.num_steps, given.num_steps, self._policy.num_steps),
        ):
            assert mine is not None
            assert theirs is not None
            mine.fill_(empty)
            self._fill(mine, theirs)
        self._previous.fill_(-1)
        self._fill(self._previous, previous.repeat(self._branches, 1))

    def _fill(self, mine: Tensor, theirs: Tensor) -> None:
        """Each branch's rows to the beginning of that branch's."""
        parts = zip(mine.chunk(self._branches), theirs.chunk(self._branches), strict=True)
        for whole, part in parts:
            target = whole[: len(part)]
            (target if part.dim() == 1 else target[:, : part.shape[1]]).copy_(part)

    def step(self, noise: Tensor) -> Drawn:
        """One step with noise float64 [K, B]: tokens and log-probabilities [B, K], kept [B, K, .]."""
        count = noise.shape[1]
        self._noise[:, :count].copy_(noise)
        self._replay()
        assert self._drawn is not None
        tokens, logprobs, kept = self._drawn
        return Drawn(
            tokens[:count].clone(),
            logprobs[:count].clone(),
            None if kept is None else kept[:count].clone(),
        )

    def _step(self) -> None:
        """What is recorded: it ends with the buffers at the step that follows."""
        hidden = self._policy.step(self._previous, self._rows, self._cache)
        draws = Draws(self._config, self._cache, self._noise)
        tokens = self._policy.emit(hidden, self._rows, self._cache, draws)
        self._previous.copy_(tokens)
        self._rows.lens.add_(1)
        assert self._rows.steps is not None
        self._rows.steps.add_(1)
        found = Drawn(tokens[: self.size], draws.logprobs, draws.kept)
        if self._drawn is None:
            self._drawn = found
        else:
            for mine, new in zip(self._drawn, found, strict=True):
                if mine is not None and new is not None:
                    mine.copy_(new)


class Graphs:
    """The recorded steps of one cache, by number of samples and width of tables."""

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        cache: DecodingCache,
        *,
        scratch: int,
        record: Record = record_cuda,
    ) -> None:
        self._policy, self._config, self._cache = policy, config, cache
        self._scratch, self._record = scratch, record
        self._graphs: dict[tuple[int, int], StepGraph] = {}
        self._addresses = _addresses(policy)

    def refresh(self) -> bool:
        """Make the recorded steps read the policy's weights as they are now; False where they
        cannot, because they lie elsewhere than they did."""
        if self._addresses != _addresses(self._policy):
            return False
        self._cache.ops.refresh()
        return True

    def start(self, previous: Tensor, rows: Rows, max_samples: int) -> StepGraph:
        """The graph of the next size, at these samples' next step; recorded at first use.
        `max_samples` fit the cache."""
        size = min(next((s for s in SIZES if s >= len(previous)), len(previous)), max_samples)
        key = size, rows.tables.shape[1]
        if key not in self._graphs:
            self._graphs[key] = StepGraph(
                self._policy,
                self._config,
                self._cache,
                size=size,
                width=rows.tables.shape[1],
                scratch=self._scratch,
                record=self._record,
            )
        graph = self._graphs[key]
        graph.load(previous, rows)
        return graph


def _device(cache: DecodingCache) -> torch.device:
    return cache.kv.data.device


def _addresses(policy: Policy) -> list[int]:
    """Where the policy's weights lie."""
    return [tensor.data_ptr() for tensor in policy.state_dict().values()]
