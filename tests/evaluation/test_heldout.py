"""The held-out evaluation: chunks, scores, exact divergence and what a summary says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.evaluation.heldout import (
    EVALUATION_STEP,
    ChunkScores,
    Divergence,
    EvaluationChunk,
    EvaluationResult,
    differences,
    divergence,
    evaluation_chunks,
    merge,
    score_chunk,
    summary,
)
from musicrl.layout import FrameLayout
from musicrl.rewards.mix import RewardMix
from musicrl.sampler.randomness import sample_seed
from musicrl.sampler.sampling import SamplingConfig
from musicrl.types import Clips, Prompt

NAN = float("nan")


def numbered(count: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(id=f"p{i}", text=str(i)) for i in range(count))


@dataclass
class Level:
    """Clip level minus the prompt's number: says which prompt it was asked about."""

    name: str = "level"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> np.ndarray:
        return clips.audio[:, 0] - np.array([float(p.text) for p in prompts], np.float32)


@dataclass
class Fixed:
    scores: Sequence[float]
    name: str = "fixed"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> np.ndarray:
        return np.array(self.scores, np.float32)


def result(prompts: Sequence[Prompt], **columns: Sequence[float]) -> EvaluationResult:
    return EvaluationResult(
        prompts=tuple(prompts), columns={k: np.array(v) for k, v in columns.items()}
    )


def test_chunks_cover_the_prompts_and_keep_the_pairs_of_the_whole() -> None:
    chunks = evaluation_chunks(numbered(5), 2)
    assert [(c.first, len(c.prompts)) for c in chunks] == [(0, 2), (2, 2), (4, 1)]
    pairs = [(a.text, b.text) for c in chunks for a, b in zip(c.prompts, c.mismatched, strict=True)]
    assert pairs == [("0", "2"), ("1", "3"), ("2", "4"), ("3", "0"), ("4", "1")]


def test_seeds_are_the_prompts_own_whatever_the_chunks() -> None:
    whole = evaluation_chunks(numbered(5), 5)[0].seeds(7)
    parts = np.concatenate([chunk.seeds(7) for chunk in evaluation_chunks(numbered(5), 2)])
    np.testing.assert_array_equal(parts, whole)
    assert int(whole[3]) == sample_seed(7, EVALUATION_STEP, 3, 0)
    assert len(set(whole.tolist())) == 5


def test_a_chunk_is_scored_against_its_own_and_a_wrong_caption() -> None:
    chunk = evaluation_chunks(numbered(4), 2)[1]
    clips = Clips(audio=np.array([[10.0], [20.0]], np.float32), sample_rate=1)
    scores = score_chunk(
        chunk, clips, RewardMix({"level": Level()}, {"level": 2.0}), [Fixed([7, 8])]
    )
    assert {name: column.tolist() for name, column in scores.columns.items()} == {
        "reward": [16.0, 34.0],  # 2 x (10 - 2), 2 x (20 - 3)
        "mismatched": [20.0, 38.0],  # against 0 and 1
        "reward/level": [8.0, 17.0],
        "judge/fixed": [7.0, 8.0],
    }


def test_a_failed_reward_is_missing_never_zero() -> None:
    chunk = evaluation_chunks(numbered(2), 2)[0]
    clips = Clips(audio=np.ones((2, 1), np.float32), sample_rate=1)
    mix = RewardMix({"a": Fixed([NAN, 4.0])}, {"a": 1.0})
    found = merge([score_chunk(chunk, clips, mix)]).figures
    assert (found["reward"].mean, found["reward"].count) == (4.0, 1)
    assert found["mismatched"].count == 1


def test_chunks_merge_in_whatever_order_they_came() -> None:
    prompts = numbered(3)
    parts = [
        ChunkScores(first=2, prompts=prompts[2:], columns={"reward": np.array([3.0], np.float32)}),
        ChunkScores(
            first=0, prompts=prompts[:2], columns={"reward": np.array([1.0, 2.0], np.float32)}
        ),
    ]
    far = [
        Divergence(first=2, kl=np.array([[5.0, 6.0]]), entropy=np.array([[0.5, 0.6]])),
        Divergence(first=0, kl=np.array([[1, 2], [3, 4.0]]), entropy=np.array([[0.1, 0.2]] * 2)),
    ]
    whole = merge(parts, far, ("semantic", "coarse"))
    assert whole.prompts == prompts
    assert whole.columns["reward"].tolist() == [1.0, 2.0, 3.0]
    assert whole.kl["semantic"].tolist() == [1.0, 3.0, 5.0]
    assert whole.kl["total"].tolist() == [3.0, 7.0, 11.0]
    assert whole.entropy["coarse"].tolist() == [0.2, 0.2, 0.6]
    assert merge(parts).kl == {}


class Table:
    """A policy of two steps and two streams whose distributions are given."""

    layout = FrameLayout(semantic_vocab=2, coarse_vocab=2, coarse_levels=1, codec_frames_per_step=1)
    num_steps = 2

    def __init__(self, probabilities: Sequence[Sequence[Sequence[float]]]) -> None:
        self.logits = torch.tensor(probabilities).log()

    def __call__(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        return self.logits.expand(len(tokens), -1, -1, -1)


def test_the_divergence_is_exact_per_stream_and_summed_over_steps() -> None:
    even, sure = [0.5, 0.5], [1.0, 0.0]
    policy, base = Table([[sure, even], [[0.75, 0.25], even]]), Table([[even, even], [even, even]])
    tokens = torch.zeros(1, 2, 2, dtype=torch.int64)
    chunk = EvaluationChunk(first=4, prompts=numbered(1), mismatched=numbered(1))
    config = SamplingConfig(temperature=1.0)
    found = divergence(chunk, policy, base, tokens, tokens[:, 0], config)
    # Step 1: ln 2. Step 2: .75 ln 1.5 + .25 ln .5.
    first = np.log(2) + 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(found.kl, [[first, 0.0]], atol=1e-6)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / 2  # a sure token has none
    np.testing.assert_allclose(found.entropy, [[entropy, np.log(2)]], atol=1e-6)
    assert found.first == 4


def test_the_divergence_is_of_the_distribution_sampled_from() -> None:
    """At temperature 1/2 the odds are squared: 3:1 becomes 9:1."""
    base, policy = Table([[[0.5, 0.5]] * 2] * 2), Table([[[0.75, 0.25]] * 2] * 2)
    tokens = torch.zeros(1, 2, 2, dtype=torch.int64)
    chunk = evaluation_chunks(numbered(2), 1)[0]
    config = SamplingConfig(temperature=0.5)
    found = divergence(chunk, policy, base, tokens, tokens[:, 0], config)
    one = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    np.testing.assert_allclose(found.kl, [[2 * one, 2 * one]], rtol=1e-5)


def test_differences_are_paired_and_refuse_other_prompts() -> None:
    before = result(numbered(3), reward=[0.0, 10.0, 20.0])
    after = result(numbered(3), reward=[1.0, 12.0, 21.0], extra=[1.0, 1.0, 1.0])
    change = differences(before, after)
    assert list(change) == ["reward"]
    assert change["reward"].mean == pytest.approx(4 / 3)
    assert change["reward"].standard_error == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="same prompts"):
        differences(before, result(numbered(3)[::-1], reward=[0.0, 0.0, 0.0]))


def test_json_holds_no_nan() -> None:
    before = result(numbered(2), reward=[0.25, NAN], judge=[NAN, NAN])
    text = json.dumps([before.to_json(), summary(before, before)], allow_nan=False)
    whole, pair = json.loads(text)
    assert whole["per_prompt"][1] == {"id": "p1", "text": "1", "reward": None, "judge": None}
    assert whole["figures"]["reward"] == {"mean": 0.25, "standard_error": None, "count": 1}
    assert pair["difference"]["reward"]["mean"] == 0.0
    assert pair["before"]["judge"]["mean"] is None
