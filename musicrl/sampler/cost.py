"""What a decoding step costs at least: operations and bytes, for the machine's limit beside a figure.

It counts what torch's reference does for one step in the middle of a clip; nothing is timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from musicrl.policies.base import Policy
from musicrl.sampler.blocks import BlockPool
from musicrl.sampler.reference import ReferenceOps
from musicrl.sampler.runner import Runner
from musicrl.sampler.sampling import NO_CONDITION, SamplingConfig
from musicrl.sampler.scheduler import Scheduler
from musicrl.sampler.sequence import Branch, Sequence

BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Of one step of a batch."""

    flops: float
    """Floating-point operations of products and attention."""
    weights: float
    """Numbers of the policy."""
    cached: float
    """Numbers of cached keys and values that are read."""


@torch.inference_mode()
def step_cost(
    policy: Policy, *, num_conditions: int, batch: int, steps: int, guidance: float = 1.0
) -> StepCost:
    """The cost of the middle step of clips of `steps` steps, `batch` samples of one prompt."""
    config = SamplingConfig(backend="reference", guidance=guidance)
    prompts = [(0,) * num_conditions, (NO_CONDITION,) * num_conditions]
    num_branches = 1 if guidance == 1 else 2
    rows, reached = batch * num_branches, steps // 2
    blocks = rows * -(-(policy.num_prefix + steps) // BLOCK)
    scheduler = Scheduler(
        BlockPool(blocks, BLOCK), num_prefix=policy.num_prefix, max_rows=rows, num_slots=2
    )
    cache = policy.new_cache(
        ReferenceOps(), num_rows=rows, num_slots=2, num_blocks=blocks, block_size=BLOCK
    )
    grid = steps, policy.layout.num_streams
    for number in range(batch):
        branches = tuple(Branch(prompt) for prompt in prompts[:num_branches])
        tokens, logprobs = np.zeros(grid, np.int16), np.zeros(grid, np.float32)
        scheduler.add(Sequence(number, number, branches, tokens, logprobs, None, step=reached))
    runner = Runner(policy, config, cache, max_samples=batch)
    runner.prefill(scheduler.schedule())
    with FlopCounterMode(display=False) as counter:
        runner.run(scheduler.running, 1)
    positions = policy.num_prefix + reached + 1
    per_position = cache.kv.data[:, :, 0, 0].numel()
    return StepCost(
        flops=float(counter.get_total_flops()),
        weights=float(sum(tensor.numel() for tensor in policy.state_dict().values())),
        cached=float(rows * positions * per_position),
    )
