"""Best of n: what choosing among a policy's own clips gives, without any training.

The baseline that a trained policy has to beat at its divergence (paper section 2 names it): of n
clips of a prompt the one with the highest reward is kept. It costs n samples for every clip that is
played. Ties go to the clip that was sampled first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from musicrl.evaluation.clipset import ClipSet, describe, join
from musicrl.evaluation.ears import Ears
from musicrl.evaluation.heldout import (
    EVALUATION_STEP,
    EvaluationResult,
    evaluation_chunks,
    merge,
    score_chunk,
)
from musicrl.rewards.base import Reward
from musicrl.rewards.mix import RewardMix
from musicrl.rollout import RolloutWorker
from musicrl.types import Clips, Prompt, RewardBatch


def evaluate_best_of(
    worker: RolloutWorker,
    prompts: Sequence[Prompt],
    mix: RewardMix,
    ears: Ears,
    judges: Sequence[Reward],
    *,
    n: int,
    seed: int,
    clips_per_chunk: int,
) -> tuple[EvaluationResult, ClipSet]:
    """The best of n clips of each prompt, scored; the first of them is the clip that the policy is
    measured by at the same seed. Its `kl` is `divergence_bound`, not measured."""
    scores, sets = [], []
    chunks = evaluation_chunks(prompts, max(1, clips_per_chunk // n))
    for chunk in track(chunks, description=f"best of {n}", transient=True):
        rollouts, clips = worker.generate(
            chunk.prompts,
            first_prompt_index=chunk.first,
            step=EVALUATION_STEP,
            run_seed=seed,
            samples_per_prompt=n,
            version=0,
        )
        best = best_of(mix(rollouts.prompts, clips), n)
        tokens = rollouts.tokens[best]
        chosen = Clips(audio=clips.audio[best], sample_rate=clips.sample_rate, tokens=tokens)
        scores.append(score_chunk(chunk, chosen, mix, judges))
        sets.append(describe(chosen, ears, tokens, [prompt.text for prompt in chunk.prompts]))
    result = merge(scores)
    bound = np.full(len(prompts), divergence_bound(n))
    return replace(result, kl={"total": bound}), join(sets)


def best_of(rewards: RewardBatch, n: int) -> NDArray[np.int64]:
    """Number of the best clip of each prompt, int64 [P], for the rewards of P x n clips, prompt by
    prompt; a clip without a reward is chosen only where its prompt has no other."""
    totals = np.where(rewards.valid, rewards.total, -np.inf).reshape(-1, n)
    best: NDArray[np.int64] = totals.argmax(1) + n * np.arange(len(totals))
    return best


def divergence_bound(n: int) -> float:
    """ln n - (n - 1) / n nats: what the divergence of the best of n from its policy is at most
    (Beirami et al. 2024, arXiv 2401.01879), whatever the reward."""
    return float(np.log(n) - (n - 1) / n)
