"""Text adherence: the cosine of caption and clip in the joint embedding (paper sections 3.3, 4.2).

A clip longer than the embedder's window is split into consecutive windows, each is scored, and the
SCORES are averaged (the paper's 30 s are three windows of 10 s). Averaging embeddings is what
conditioning does, and something else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.audio import loudness, resample, split_windows
from musicrl.embedders.base import JointEmbedder
from musicrl.types import Clips, Prompt

SILENCE_DBFS = -90.0
"""A clip below this level, about one step of 16-bit audio, is silent and has no score."""


class TextAdherence:
    """Mean cosine, in [-1, 1], over the windows of a clip. Silent or non-finite clips get NaN."""

    def __init__(self, embedder: JointEmbedder, *, name: str = "text", batch: int = 96) -> None:
        self.name = name
        self._embedder = embedder
        self._batch = batch
        """Windows that are embedded at a time."""

    def move(self, device: torch.device) -> None:
        """Bring the embedder, with all who share it, to `device`."""
        self._embedder.move(device)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B] for audio [B, N] at any sample rate."""
        audio = resample(clips.audio, clips.sample_rate, self._embedder.sample_rate)
        scores = np.full(len(prompts), np.nan, np.float32)
        (heard,) = np.nonzero(np.isfinite(audio).all(1) & (loudness(audio) > SILENCE_DBFS))
        if len(heard):
            texts = self._embed_texts([prompts[i].text for i in heard.tolist()])
            scores[heard] = self._cosines(texts, audio[heard])
        return scores

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, D]; a caption that comes several times is embedded once."""
        unique = list(dict.fromkeys(texts))
        row = {text: i for i, text in enumerate(unique)}
        return self._embedder.embed_text(unique)[[row[text] for text in texts]]

    def _cosines(self, texts: Tensor, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        size = round(self._embedder.window_seconds * self._embedder.sample_rate)
        windows = split_windows(audio, size)
        B, W, _ = windows.shape
        flat = torch.from_numpy(windows.reshape(B * W, size))
        parts = [flat[i : i + self._batch] for i in range(0, B * W, self._batch)]
        sounds = torch.cat([self._embedder.embed_audio(part) for part in parts])
        cosines = torch.einsum("bd,bwd->bw", texts.float(), sounds.float().view(B, W, -1))
        scores: NDArray[np.float32] = cosines.mean(1).cpu().numpy()
        return scores
