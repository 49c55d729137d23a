"""Acoustic quality: a predicted mean opinion score of the sound alone (paper sections 3.3, 4.2).

The raw score is the opinion, 1..5; the mix takes it as (q - 1) / 4. The first and the last window
of a clip are scored and the scores averaged. Prompts are not read: what a clip plays is not judged,
only how it sounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.audio import loudness, resample
from musicrl.rewards.mos import HIGHEST, LOWEST, MosPredictor
from musicrl.rewards.text import SILENCE_DBFS
from musicrl.types import Clips, Prompt

QUALITY_FILE = "quality.safetensors"
"""Of a world's folder."""
QUALITY_JUDGE_FILE = "quality-judge.safetensors"
"""Likewise: a predictor that no policy is rewarded with and that no simulated choice followed."""
QUALITY_RANGE = (LOWEST, HIGHEST)
WINDOW_SECONDS = 20.0
"""Length of the windows of a clip of 30 s and more (paper section 3.3)."""
WINDOW_SHARE = 2 / 3
"""Length of the windows of a shorter clip, as a share of it: 20 s are two thirds of the paper's
30 s."""
SHORTEST_SECONDS = 0.2
"""A clip below this length has no score."""


class Quality:
    """Mean opinion, 1..5, over the first and the last window of a clip.

    A window lasts 20 s, or two thirds of a clip shorter than 30 s (this project's choice: the paper
    scores 30 s alone). Silent, non-finite and very short clips get NaN.
    """

    def __init__(self, predictor: MosPredictor, *, name: str = "quality", batch: int = 64) -> None:
        self.name = name
        self._predictor = predictor
        self._device = torch.device("cpu")
        self._batch = batch
        """Clips that are heard at a time."""

    def move(self, device: torch.device) -> None:
        self._predictor.to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B] for audio [B, N] at any sample rate."""
        B, N = clips.audio.shape
        scores = np.full(B, np.nan, np.float32)
        if N / clips.sample_rate < SHORTEST_SECONDS:
            return scores
        audio = resample(clips.audio, clips.sample_rate, self._predictor.sample_rate)
        (heard,) = np.nonzero(np.isfinite(audio).all(1) & (loudness(audio) > SILENCE_DBFS))
        for part in np.split(heard, range(self._batch, len(heard), self._batch)):
            if len(part):
                mel = self._predictor.listen(torch.from_numpy(audio[part]).to(self._device))
                scores[part] = opinions(self._predictor, mel).cpu().numpy()
        return scores


def opinions(predictor: MosPredictor, mel: Tensor) -> Tensor:
    """Opinions float32 [B] of clips as log-mel [B, bands, frames]: the mean of both windows'."""
    size = window_frames(mel.shape[2], predictor.frame_rate)
    ends = [predictor(mel[:, :, :size]), predictor(mel[:, :, -size:])]
    return torch.stack(ends).mean(0)


def window_frames(num_frames: int, frame_rate: float) -> int:
    """Frames of a window of a clip of `num_frames`."""
    return max(1, round(min(WINDOW_SECONDS * frame_rate, WINDOW_SHARE * num_frames)))


def load_quality(folder: Path, file: str = QUALITY_FILE) -> Quality:
    """The reward of a world's folder, or the judge of `QUALITY_JUDGE_FILE`.

    Raises FileNotFoundError naming the file and what makes it, ValueError when it is damaged.
    """
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(
            f"no {file} in {folder}: `musicrl pretrain {path.stem} --weights {folder}` makes it"
        )
    return Quality(MosPredictor.from_file(path))
