"""Making rollouts: a chunk of prompts to grids of tokens and their audio, with fixed weights.

A chunk is the unit of work, of one fixed batch shape whatever the number of workers: what it yields
is a pure function of the weights and of the numbers inside it. Nothing here knows of rewards,
training or processes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.evaluation.heldout import EVALUATION_STEP
from musicrl.playable import PlayableWorld
from musicrl.policies.flat import adopt, apply, disown
from musicrl.sampler.engine import Engine
from musicrl.sampler.randomness import sample_seed
from musicrl.sampler.sampling import SamplingConfig
from musicrl.types import Clips, Prompt, Rollouts, Weights, clips_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some consecutive prompts of one training step."""

    step: int
    index: int
    """Of the chunk within its step."""
    first_prompt: int
    """Index within the step of the first prompt: with the step, it fixes the randomness."""
    prompts: tuple[Prompt, ...]

    @property
    def key(self) -> tuple[int, int]:
        """Step, and number of the first prompt: of no two chunks the same, and in their order."""
        return self.step, self.first_prompt

    def parts(self) -> tuple[Chunk, ...]:
        """Its prompts as chunks of their own: together, the same samples."""
        return tuple(
            replace(self, first_prompt=self.first_prompt + i, prompts=(prompt,))
            for i, prompt in enumerate(self.prompts)
        )

    def __str__(self) -> str:
        if len(self.prompts) == 1:
            return f"prompt {self.first_prompt} of step {self.step}"
        return f"chunk {self.index} of step {self.step}"


def chunks_of(step: int, prompts: Sequence[Prompt], *, size: int) -> tuple[Chunk, ...]:
    """The prompts of a step cut into chunks of `size`, in order (the last may be shorter)."""
    return tuple(
        Chunk(step=step, index=index, first_prompt=first, prompts=tuple(prompts[first:][:size]))
        for index, first in enumerate(range(0, len(prompts), size))
    )


class RolloutWorker:
    """A world whose policy samples. `seconds` are the phases of the latest chunk."""

    def __init__(
        self, world: PlayableWorld, sampling: SamplingConfig, *, device: torch.device | None = None
    ) -> None:
        """Policy, codec and fine stage move to `device` (none: the CPU)."""
        self.world = world
        self.device = device or torch.device("cpu")
        world.move_players(self.device)
        self.engine = Engine(world.policy, sampling)
        self.seconds: Mapping[str, float] = {}
        self._bases: dict[str, Tensor] = {}
        self._is_adopted = False

    def apply(self, weights: Weights, *, is_shared: bool = False) -> float:
        """Give the policy other weights; the seconds that it took. What `is_shared` is memory that
        nobody ever writes to: a policy on the CPU reads it there, unless there is something to merge.

        Raises ValueError when they do not fit or are damaged.
        """
        started = time.perf_counter()
        if is_shared and weights.scale is None and self.device.type == "cpu":
            adopt(self.world.policy, weights)
            self._is_adopted = True
        else:
            if self._is_adopted:
                disown(self.world.policy)
                self._is_adopted = False
            apply(self.world.policy, weights, bases=self._bases)
        return time.perf_counter() - started

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        first_prompt_index: int,
        step: int,
        run_seed: int,
        samples_per_prompt: int,
        version: int,
        clip_seconds: float | None = None,
    ) -> tuple[Rollouts, Clips]:
        """Sample each prompt `samples_per_prompt` times, as adjacent rows, and decode them.

        `version` is that of the weights now applied; the rollouts carry it. Raises ValueError when
        the policy plays no clips of `clip_seconds` (none: whole ones).
        """
        started = time.perf_counter()
        seeds = chunk_seeds(
            run_seed,
            step,
            range(first_prompt_index, first_prompt_index + len(prompts)),
            samples_per_prompt,
        )
        with torch.inference_mode():
            conditions = self.world.conditioner([prompt.text for prompt in prompts])
            samples = self.engine.generate(
                conditions.to(self.device),
                samples_per_prompt=samples_per_prompt,
                seeds=seeds,
                num_steps=self.world.steps_of(clip_seconds),
            )
            sampled = time.perf_counter()
            channels = np.asarray(self.world.decode_channels(samples.tokens), dtype=np.float32)
        self.seconds = {"sample": sampled - started, "decode": time.perf_counter() - sampled}
        group = np.arange(first_prompt_index, first_prompt_index + len(prompts), dtype=np.int32)
        rollouts = Rollouts(
            prompts=tuple(prompt for prompt in prompts for _ in range(samples_per_prompt)),
            conditions=conditions.numpy().astype(np.int16).repeat(samples_per_prompt, axis=0),
            tokens=samples.tokens,
            logprobs=samples.logprobs,
            kept=samples.kept,
            group=group.repeat(samples_per_prompt),
            seeds=seeds,
            version=np.full(len(seeds), version, dtype=np.int64),
        )
        clips = clips_of(channels, self.world.sample_rate, samples.tokens)
        return rollouts, clips

    def generate_heldout(
        self, prompts: Sequence[Prompt], *, first: int, version: int
    ) -> tuple[Rollouts, Clips]:
        """One whole clip of each held-out prompt from number `first` on, with the same noise in
        every run."""
        return self.generate(
            prompts,
            first_prompt_index=first,
            step=EVALUATION_STEP,
            run_seed=0,
            samples_per_prompt=1,
            version=version,
        )


def chunk_seeds(
    run_seed: int, step: int, prompts: Sequence[int], samples: int
) -> NDArray[np.uint64]:
    """uint64 [P*G]: the random stream of every sample, those of a prompt adjacent."""
    return np.array(
        [sample_seed(run_seed, step, p, g) for p in prompts for g in range(samples)],
        dtype=np.uint64,
    )


def rollout_bytes(rollouts: Rollouts) -> int:
    """Bytes of the arrays of `rollouts`."""
    arrays = (rollouts.conditions, rollouts.tokens, rollouts.logprobs)
    return sum(a.nbytes for a in (*arrays, rollouts.group, rollouts.seeds, rollouts.version))
