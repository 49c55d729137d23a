"""The fixed held-out evaluation: the same prompts with the same seeds, before and after training.

Per prompt it holds the reward against the clip's own caption and against a wrong one, the scores of
judges that are never rewarded, and the exact divergence from the base model per stream (paper
section 7). Split so that a cluster can fan it out: chunks, scores of a chunk, merge.

    evaluation_chunks -> sample and decode each -> score_chunk (+ divergence) -> merge
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.evaluation.figures import Figure, figure, paired
from musicrl.evaluation.winrate import Marks, WinRate, win_rate
from musicrl.prompts import mismatched
from musicrl.rewards.base import Reward
from musicrl.rewards.mix import RewardMix
from musicrl.sampler.randomness import sample_seed
from musicrl.sampler.sampling import SamplingConfig, TokenModel, grid_log_probs
from musicrl.types import Clips, Prompt

EVALUATION_STEP = 2**31 - 1
"""The training step whose random numbers evaluation uses: one that no run reaches."""
REWARD, MISMATCHED = "reward", "mismatched"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationChunk:
    """Consecutive held-out prompts, which are sampled and scored together."""

    first: int
    """Number of the first prompt among all."""
    prompts: tuple[Prompt, ...]
    mismatched: tuple[Prompt, ...]
    """For each prompt the wrong one that its clip is scored against as well."""

    def seeds(self, seed: int = 0) -> NDArray[np.uint64]:
        """uint64 [P]: the random stream of each prompt's one sample. They do not depend on the
        chunk's size, nor on the training run, so that before and after are paired."""
        numbers = range(self.first, self.first + len(self.prompts))
        seeds = [sample_seed(seed, EVALUATION_STEP, number, 0) for number in numbers]
        return np.array(seeds, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkScores:
    """Scores of the B clips of a chunk; NaN where one could not be made."""

    first: int
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, NDArray[np.float32]]
    """float32 [B] each: `reward`, `mismatched`, the mix's raw terms and the judges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far the policy is from the base on the clips that it sampled."""

    first: int
    """Number of the first prompt among all."""
    kl: NDArray[np.float64]
    """float64 [B, K], nats: exact KL(policy || base) of every token's distribution, summed over
    the steps."""
    entropy: NDArray[np.float64]
    """float64 [B, K], nats: entropy of the policy, mean over the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Figures of one policy (or of a folder of audio) on the held-out prompts."""

    prompts: tuple[Prompt, ...]
    columns: Mapping[str, NDArray[np.float64]]
    """float64 [P] each, NaN where a clip could not be scored."""
    stream_names: tuple[str, ...] = ()
    kl: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """float64 [P] nats of each stream, and of `total`; empty when not measured."""
    entropy: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """float64 [P] nats per token of each stream; empty when not measured."""

    @property
    def figures(self) -> dict[str, Figure]:
        return {name: figure(column) for name, column in self.columns.items()}

    def to_json(self) -> dict[str, object]:
        """Means with standard errors, and the per-prompt columns that they are made of."""
        return {
            "prompts": len(self.prompts),
            "figures": _figures_json(self.columns),
            "kl": _figures_json(self.kl),
            "entropy": _figures_json(self.entropy),
            "per_prompt": [self._row(i) for i in range(len(self.prompts))],
        }

    def _row(self, index: int) -> dict[str, object]:
        prompt = self.prompts[index]
        scores = {name: _number(column[index]) for name, column in self.columns.items()}
        return {"id": prompt.id, "text": prompt.text, **scores}


def evaluation_chunks(prompts: Sequence[Prompt], chunk: int) -> tuple[EvaluationChunk, ...]:
    """The prompts, each with its wrong one, in chunks of at most `chunk`."""
    wrong = mismatched(prompts)
    return tuple(
        EvaluationChunk(
            first=i, prompts=tuple(prompts[i : i + chunk]), mismatched=wrong[i : i + chunk]
        )
        for i in range(0, len(prompts), chunk)
    )


def score_chunk(
    chunk: EvaluationChunk, clips: Clips, mix: RewardMix, judges: Sequence[Reward] = ()
) -> ChunkScores:
    """Scores of one clip for each prompt of a chunk. Judges fail loudly: nothing trains on them."""
    matched, wrong = mix(chunk.prompts, clips), mix(chunk.mismatched, clips)
    columns = {
        REWARD: np.where(matched.valid, matched.total, np.nan).astype(np.float32),
        MISMATCHED: np.where(wrong.valid, wrong.total, np.nan).astype(np.float32),
        **{f"reward/{name}": term for name, term in matched.terms.items()},
        **{f"judge/{judge.name}": judge(chunk.prompts, clips) for judge in judges},
    }
    return ChunkScores(first=chunk.first, prompts=chunk.prompts, columns=columns)


@torch.no_grad()  # what sharded networks gather for it, they train with
def divergence(
    chunk: EvaluationChunk,
    policy: TokenModel,
    base: TokenModel,
    tokens: Tensor,
    conditions: Tensor,
    sampling: SamplingConfig,
    kept: Tensor | None = None,
) -> Divergence:
    """Teacher-forced divergence on tokens int64 [B, S, K] that `policy` sampled for a chunk; with
    top-k over the tokens that it left to draw from (`kept`, as in `Rollouts`)."""
    logp = grid_log_probs(policy, tokens, conditions, sampling, kept)
    logq = grid_log_probs(base, tokens, conditions, sampling, kept)
    p = logp.exp()
    kl = torch.where(p > 0, p * (logp - logq), 0.0).double().sum(-1)
    entropy = -torch.where(p > 0, p * logp, 0.0).double().sum(-1)
    return Divergence(
        first=chunk.first, kl=kl.sum(1).cpu().numpy(), entropy=entropy.mean(1).cpu().numpy()
    )


def merge(
    scores: Sequence[ChunkScores],
    divergences: Sequence[Divergence] = (),
    stream_names: Sequence[str] = (),
) -> EvaluationResult:
    """The chunks of one evaluation, in whatever order they came, as one result."""
    ordered = sorted(scores, key=lambda part: part.first)
    columns = {
        name: np.concatenate([part.columns[name] for part in ordered]).astype(np.float64)
        for name in ordered[0].columns
    }
    parts = sorted(divergences, key=lambda part: part.first)
    kl = _streams([part.kl for part in parts], stream_names)
    return EvaluationResult(
        prompts=tuple(prompt for part in ordered for prompt in part.prompts),
        columns=columns,
        stream_names=tuple(stream_names),
        kl={**kl, "total": np.sum(list(kl.values()), axis=0)} if kl else {},
        entropy=_streams([part.entropy for part in parts], stream_names),
    )


def differences(before: EvaluationResult, after: EvaluationResult) -> dict[str, Figure]:
    """Paired change of every column that both have: after minus before, prompt by prompt.

    Raises ValueError when the two were not made of the same prompts.
    """
    if [p.id for p in before.prompts] != [p.id for p in after.prompts]:
        raise ValueError("paired differences need the same prompts in the same order")
    shared = [name for name in before.columns if name in after.columns]
    return {name: paired(before.columns[name], after.columns[name]) for name in shared}


def win_rates(before: EvaluationResult, after: EvaluationResult) -> dict[str, WinRate]:
    """How often `after` scored higher than `before` for the same prompt, of every column that both
    have and that tells some of their clips apart. Raises as `differences`."""
    changes = differences(before, after)
    rates = {
        name: win_rate(
            Marks(
                a=after.columns[name],
                b=before.columns[name],
                prompt=np.arange(len(before.prompts)),
            )
        )
        for name in changes
    }
    return {name: found for name, found in rates.items() if found.wins + found.losses}


def summary(before: EvaluationResult, after: EvaluationResult) -> dict[str, object]:
    """Before, after and the paired difference, as the `evaluation` part of a summary.json."""
    return {
        "prompts": len(before.prompts),
        "before": _figures_json(before.columns),
        "after": _figures_json(after.columns),
        "difference": {k: v.to_json() for k, v in differences(before, after).items()},
        "kl": _figures_json(after.kl),
        "entropy_before": _figures_json(before.entropy),
        "entropy_after": _figures_json(after.entropy),
    }


def _streams(
    parts: Sequence[NDArray[np.float64]], names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Chunks [B, K] to one column [P] a stream."""
    if not parts:
        return {}
    table = np.concatenate(parts)
    return {name: table[:, k] for k, name in enumerate(names)}


def _figures_json(columns: Mapping[str, NDArray[np.float64]]) -> dict[str, object]:
    return {name: figure(column).to_json() for name, column in columns.items()}


def _number(value: np.floating) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
