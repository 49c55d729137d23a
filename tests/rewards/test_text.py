"""Text adherence with an embedder of known geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.audio import split_windows
from musicrl.rewards.text import TextAdherence
from musicrl.types import Clips, Prompt

AXES = {"x": (1.0, 0.0), "y": (0.0, 1.0)}


class Plane:
    """A window of mean level v is the unit vector (v, sqrt(1 - v^2)); texts are the axes."""

    sample_rate = 4
    window_seconds = 2.0

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.windows: list[int] = []

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        self.texts.extend(texts)
        return torch.tensor([AXES[text] for text in texts])

    def embed_audio(self, audio: Tensor) -> Tensor:
        assert audio.shape[1] == 8
        self.windows.append(len(audio))
        level = audio.mean(1)
        return torch.stack([level, (1 - level**2).sqrt()], 1)

    def embed_clip(self, audio: Tensor) -> Tensor:
        raise AssertionError("the reward averages scores, not vectors")

    def move(self, device: torch.device) -> None:
        raise AssertionError("a plane has no device")


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(id=str(i), text=text) for i, text in enumerate(texts)]


def levels(*values: float) -> np.ndarray:
    """A clip whose windows have these levels."""
    return np.repeat(np.array(values, np.float32), 8)


def test_the_scores_of_windows_are_averaged_not_their_embeddings() -> None:
    clips = Clips(audio=np.stack([levels(0.6, 0.8, 1.0)] * 2), sample_rate=4)
    scores = TextAdherence(Plane())(prompts("x", "y"), clips)
    # Cosines with x: .6 .8 1; with y: .8 .6 0. The mean embedding, normalised, would give .851.
    np.testing.assert_allclose(scores, [0.8, 1.4 / 3], rtol=1e-6)


def test_windows_are_batched_and_captions_embedded_once() -> None:
    embedder = Plane()
    clips = Clips(audio=np.stack([levels(0.6, 0.8)] * 4), sample_rate=4)
    scores = TextAdherence(embedder, batch=5)(prompts("x", "y", "x", "x"), clips)
    assert embedder.texts == ["x", "y"]
    assert embedder.windows == [5, 3]
    np.testing.assert_allclose(scores, [0.7, 0.7, 0.7, 0.7], rtol=1e-6)


def test_silent_and_broken_clips_have_no_score_and_spoil_no_other() -> None:
    good, silent = levels(0.6, 0.6), levels(0.0, 0.0)
    broken = good.copy()
    broken[3] = np.nan
    clips = Clips(audio=np.stack([silent, good, broken, silent + 1e-6]), sample_rate=4)
    scores = TextAdherence(Plane())(prompts("x", "x", "x", "x"), clips)
    np.testing.assert_allclose(scores, [np.nan, 0.6, np.nan, np.nan], rtol=1e-6)


def test_all_silent_is_all_nan() -> None:
    clips = Clips(audio=np.zeros((2, 8), np.float32), sample_rate=4)
    assert np.isnan(TextAdherence(Plane())(prompts("x", "y"), clips)).all()


def test_another_sample_rate_is_resampled_first() -> None:
    clips = Clips(audio=np.full((1, 4_000), 0.6, np.float32), sample_rate=1_000)
    embedder = Plane()
    (score,) = TextAdherence(embedder)(prompts("x"), clips)
    assert embedder.windows == [2]  # 4 s are two windows of 2 s
    assert score == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(
    ("length", "size", "starts"),
    [(9, 3, [0, 3, 6]), (8, 3, [0, 3, 5]), (3, 3, [0]), (4, 3, [0, 1])],
)
def test_windows_of_whole_and_broken_lengths(length: int, size: int, starts: list[int]) -> None:
    audio = np.arange(2 * length, dtype=np.float32).reshape(2, length)
    expected = [[row[s : s + size].tolist() for s in starts] for row in audio]
    assert split_windows(audio, size).tolist() == expected


def test_a_short_clip_is_padded_with_silence() -> None:
    audio = np.array([[1.0, 2.0]], np.float32)
    assert split_windows(audio, 4).tolist() == [[[1.0, 2.0, 0.0, 0.0]]]
