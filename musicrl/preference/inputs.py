"""What a preference model is shown of comparisons: clips, each once, and the captions' conditions.

Axes: P captions, U clips, M pairs, S steps, K streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.policies.preference import PreferenceModel
from musicrl.preference.pairs import Pairs
from musicrl.preference.predictions import Prediction, predict

CLIPS_AT_ONCE = 64
"""Clips that are scored together where nothing is learned."""
NO_CONDITION = -1


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a model is shown of the pairs: an ablation takes something away."""

    pairs: Pairs
    conditions: NDArray[np.int16]
    """int16 [P, C]: of each text."""
    has_text: bool = True
    """Whether the captions' conditions are shown."""
    num_steps: int | None = None
    """First steps of every clip that are shown (none: all)."""

    def of(self, clips: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Tokens int64 [U, S, K] and conditions int64 [U, C] of clips int64 [U, 2] as
        (pair, side)."""
        number, side = clips.T
        tokens = self.pairs.tokens[number, side, : self.num_steps].astype(np.int64)
        conditions = torch.from_numpy(self.conditions[self.pairs.prompt[number]].astype(np.int64))
        if not self.has_text:
            conditions = torch.full_like(conditions, NO_CONDITION)
        return torch.from_numpy(tokens), conditions


class HeldoutClips:
    """The held-out pairs, every clip of them once: a clip stands in many pairs."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self.numbers = inputs.pairs.heldout
        self.clips, self.place = distinct_clips(inputs.pairs, self.numbers)

    def scores(self, model: PreferenceModel) -> NDArray[np.float64]:
        """float64 [U], of each clip."""
        return clip_scores(model, self._inputs, self.clips)

    def predict(self, scores: NDArray[np.float64]) -> Prediction:
        """The figures of the clips' scores."""
        pairs = self._inputs.pairs
        margin = scores[self.place[:, 0]] - scores[self.place[:, 1]]
        return predict(margin, pairs.first_wins[self.numbers], pairs.prompt[self.numbers])

    def deviation(self, scores: NDArray[np.float64]) -> float:
        """Deviation of the scores among the clips of a prompt."""
        prompt = self._inputs.pairs.prompt[self.clips[:, 0]]
        numbers = np.unique(prompt, return_inverse=True)[1]
        means = np.bincount(numbers, scores) / np.bincount(numbers)
        return float(np.sqrt(((scores - means[numbers]) ** 2).mean()))


def distinct_clips(
    pairs: Pairs, numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clips of the numbered pairs, each once, int64 [U, 2] as (pair, side), and the place
    int64 [M, 2] of both clips of each pair among them."""
    found: dict[tuple[int, bytes], int] = {}
    clips: list[tuple[int, int]] = []
    place = np.empty((len(numbers), 2), np.int64)
    for row, number in enumerate(numbers.tolist()):
        for side in (0, 1):
            key = int(pairs.prompt[number]), pairs.tokens[number, side].tobytes()
            if key not in found:
                found[key] = len(clips)
                clips.append((number, side))
            place[row, side] = found[key]
    return np.array(clips, np.int64).reshape(-1, 2), place


@torch.inference_mode()
def clip_scores(
    model: PreferenceModel, inputs: Inputs, clips: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores float64 [U] of clips int64 [U, 2] as (pair, side)."""
    parts = [clips[i : i + CLIPS_AT_ONCE] for i in range(0, len(clips), CLIPS_AT_ONCE)]
    return np.concatenate([score(model, inputs.of(part)).double().cpu().numpy() for part in parts])


def score(model: PreferenceModel, shown: tuple[Tensor, Tensor]) -> Tensor:
    """Scores float32 [U] of tokens and conditions, where the model is."""
    tokens, conditions = (tensor.to(model.head.weight.device) for tensor in shown)
    scores: Tensor = model(tokens, conditions)
    return scores
