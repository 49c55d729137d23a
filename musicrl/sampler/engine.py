"""The sampler: prompts to grids of tokens with the log-probability of every token.

    submit -> waiting -> [ schedule -> prefill -> run -> finish ] -> samples

Samples of one prompt share its cache; samples of any prompts and lengths are decoded together, and
join and leave while others run. It knows neither rewards nor weights' versions nor processes.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.policies.base import Policy
from musicrl.sampler.backends import make_ops
from musicrl.sampler.blocks import BlockPool
from musicrl.sampler.flash import PAGE, FlashOps
from musicrl.sampler.graphs import Graphs, Record, record_cuda
from musicrl.sampler.runner import Runner
from musicrl.sampler.sampling import NO_CONDITION, SamplingConfig
from musicrl.sampler.scheduler import Scheduler
from musicrl.sampler.sequence import Branch, Sequence

CPU_BLOCK = 64
"""Most positions of a block on the CPU: much smaller ones cost attention its pace."""
STREAM_ROWS = 16
"""Samples decoded at once by `submit` and `step` where `max_rows` does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """B samples of S steps."""

    tokens: NDArray[np.int16]
    """int16 [B, S, K]."""
    logprobs: NDArray[np.float32]
    """float32 [B, S, K], nats: of each token under the exact distribution it was drawn from."""
    kept: NDArray[np.uint8] | None
    """uint8 [B, S, K, ceil(V / 8)] with top-k: the tokens that were left to draw from, a bit each,
    for `sampling.log_probs`; None without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """What a cache has room for."""

    num_rows: int
    num_slots: int
    pool: tuple[int, int]
    """Blocks and positions of each."""


class Engine:
    """Samples a policy, with the weights that it has when the engine goes from idle to busy."""

    def __init__(
        self, policy: Policy, config: SamplingConfig, *, record: Record | None = None
    ) -> None:
        """`record` makes a decoding step replayable (none: CUDA graphs where the backend is flash,
        and steps that are computed anew elsewhere)."""
        self.policy = policy
        self.config = config
        self._record = record
        self._scheduler: Scheduler | None = None
        self._runner: Runner | None = None
        self._layout: CacheLayout | None = None
        self._num_submitted = 0

    @property
    def is_idle(self) -> bool:
        return self._scheduler is None or self._scheduler.is_idle

    @property
    def num_preempted(self) -> int:
        """Times that a sample gave its blocks back for others, since the cache was made."""
        return 0 if self._scheduler is None else self._scheduler.num_preempted

    def generate(
        self,
        conditions: Tensor,
        *,
        samples_per_prompt: int,
        seeds: NDArray[np.uint64],
        num_steps: int | None = None,
    ) -> Samples:
        """Sample each prompt `samples_per_prompt` times, as adjacent rows.

        From conditions int64 [P, C] and seeds uint64 [P*G] to P*G samples of `num_steps` steps, or
        the policy's own. A row depends on its condition and seed alone. Raises ValueError for sizes
        that do not fit, when the policy's logits are not finite, and when other samples are under
        way.
        """
        if not self.is_idle:
            raise ValueError("generate needs an idle engine: other samples are under way")
        S = self.policy.num_steps if num_steps is None else num_steps
        rows = len(conditions) * samples_per_prompt
        if rows == 0 or seeds.shape != (rows,):
            raise ValueError(
                f"{len(conditions)} prompts x {samples_per_prompt} samples need as many seeds, "
                f"at least one, got {seeds.size}"
            )
        self._check_steps(S)
        self._open(rows=rows, steps=S, prompts=len(conditions))
        prompts = [tuple(row) for row in conditions.tolist()]
        ids = [
            self._add(prompts[row // samples_per_prompt], int(seed), S)
            for row, seed in enumerate(seeds)
        ]
        done: dict[int, Sequence] = {}
        while not self.is_idle:
            done |= {sequence.id: sequence for sequence in self._round(S)}
        return _stacked([done[i] for i in ids])

    def submit(self, conditions: Tensor, *, seed: int, num_steps: int | None = None) -> int:
        """Ask for one sample of the prompt int64 [C]; the number that `step` returns it under.

        Raises ValueError for a length that does not fit the policy or the cache.
        """
        steps = self.policy.num_steps if num_steps is None else num_steps
        self._check_steps(steps)
        if self.is_idle:
            rows = self.config.max_rows or STREAM_ROWS
            self._open(rows=rows, steps=self.policy.num_steps, prompts=rows)
        return self._add(tuple(conditions.tolist()), seed, steps)

    def step(self, max_steps: int = 8) -> dict[int, Samples]:
        """Decode up to `max_steps` steps of the samples under way; those that were finished."""
        return {sequence.id: _stacked([sequence]) for sequence in self._round(max_steps)}

    def check_integrity(self) -> None:
        """Raise AssertionError if a block of the cache is lost or has two writers."""
        if self._scheduler is not None:
            self._scheduler.check_integrity()

    @torch.inference_mode()
    def _round(self, max_steps: int) -> list[Sequence]:
        if self._scheduler is None or self._runner is None:
            return []
        plan = self._scheduler.schedule()
        try:
            self._runner.prefill(plan)
            if plan.num_steps:
                self._runner.run(self._scheduler.running, min(plan.num_steps, max_steps))
        except BaseException:
            self._scheduler = self._runner = None  # what is in the cache is not to be trusted
            raise
        return self._scheduler.finish()

    def _add(self, prompt: tuple[int, ...], seed: int, steps: int) -> int:
        assert self._scheduler is not None
        layout = self.policy.layout
        grid = steps, layout.num_streams
        prompts = [prompt]
        if self.config.guidance != 1:
            prompts.append((NO_CONDITION,) * len(prompt))
        bits = (*grid, -(-layout.vocab_size // 8))
        self._num_submitted += 1
        self._scheduler.add(
            Sequence(
                id=self._num_submitted,
                seed=seed,
                branches=tuple(Branch(conditions) for conditions in prompts),
                tokens=np.zeros(grid, dtype=np.int16),
                logprobs=np.zeros(grid, dtype=np.float32),
                kept=np.zeros(bits, dtype=np.uint8) if self.config.top_k else None,
            )
        )
        return self._num_submitted

    @torch.inference_mode()
    def _open(self, *, rows: int, steps: int, prompts: int) -> None:
        """Make room for so many samples, in the cache of before if it is of that size, and read the
        policy's weights."""
        config = self.config
        device = next(iter(self.policy.state_dict().values())).device
        positions = self.policy.num_prefix + steps
        size = config.block_size or (_even_block(positions) if device.type == "cpu" else PAGE)
        branches = 1 if config.guidance == 1 else 2
        num_rows = min(rows, config.max_rows or rows) * branches
        full = -(-positions // size)
        pool = BlockPool(config.num_blocks or num_rows * full, size)
        num_slots = min(prompts, num_rows) + branches - 1
        layout = CacheLayout(num_rows=num_rows, num_slots=num_slots, pool=(pool.num_blocks, size))
        if self._runner is None or not self._is_recorded(layout):
            self._runner = self._new_runner(layout, device)
        self._layout = layout
        self._scheduler = Scheduler(
            pool, num_prefix=self.policy.num_prefix, max_rows=num_rows, num_slots=num_slots
        )

    def _is_recorded(self, layout: CacheLayout) -> bool:
        """Whether the runner of before has steps recorded on such a cache and on weights that lie
        where the policy's do; they are then told of the weights as they are now."""
        if self._runner is None or self._runner.graphs is None or self._layout != layout:
            return False
        return self._runner.graphs.refresh()

    def _new_runner(self, layout: CacheLayout, device: torch.device) -> Runner:
        """One that reads the policy's weights, on the cache of before if it is of that layout."""
        before = None if self._runner is None else self._runner.cache.ops
        ops = make_ops(self.config, num_rows=layout.num_rows, device=device, before=before)
        record = self._record or (record_cuda if isinstance(ops, FlashOps) else None)
        num_blocks, size = layout.pool
        if self._runner is not None and self._layout == layout:
            cache = self._runner.cache
            cache.ops = ops
        else:
            cache = self.policy.new_cache(
                ops,
                num_rows=layout.num_rows,
                num_slots=layout.num_slots,
                num_blocks=num_blocks + (record is not None),  # one more, for padding to write to
                block_size=size,
            )
        graphs = None
        if record is not None:
            graphs = Graphs(self.policy, self.config, cache, scratch=num_blocks, record=record)
        branches = 1 if self.config.guidance == 1 else 2
        max_samples = layout.num_rows // branches
        return Runner(self.policy, self.config, cache, max_samples=max_samples, graphs=graphs)

    def _check_steps(self, steps: int) -> None:
        if not 1 <= steps <= self.policy.num_steps:
            raise ValueError(f"num_steps must be 1 to {self.policy.num_steps}, got {steps}")


def _even_block(positions: int) -> int:
    """Size of the fewest blocks of at most `CPU_BLOCK` that hold so many positions: a multiple of
    8, and hardly any of it unused."""
    blocks = -(-positions // CPU_BLOCK)
    return -(-positions // (8 * blocks)) * 8


def _stacked(sequences: Ordered[Sequence]) -> Samples:
    kept = [sequence.kept for sequence in sequences if sequence.kept is not None]
    return Samples(
        tokens=np.stack([sequence.tokens for sequence in sequences]),
        logprobs=np.stack([sequence.logprobs for sequence in sequences]),
        kept=np.stack(kept) if kept else None,
    )
