"""Ears: what judges the clips of a world and enters no reward, whatever family the world is of.

    judges        a score of every clip, for its prompt
    embedders     a vector of every clip, for distances between sets
    left_out      rows that this world has no judge for, and why

Which models they are is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from musicrl.audio import resample, split_windows
from musicrl.embedders.base import JointEmbedder
from musicrl.rewards.base import Reward
from musicrl.types import Clips

Embed = Callable[[Clips], NDArray[np.float64]]
"""Clips to float64 [B, D]; NaN for clips that are not finite."""
EMBEDDED_WINDOWS = 96
"""Windows that a joint embedding hears at once, to bound memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears:
    """The judges and the embedders of one world."""

    judges: tuple[Reward, ...]
    embedders: Mapping[str, Embed]
    """By the name that their distances bear."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why there is no such row, by the name that it would bear."""

    def embed(self, clips: Clips) -> dict[str, NDArray[np.float64]]:
        """float64 [B, D] of every embedder."""
        return {name: embed(clips) for name, embed in self.embedders.items()}


@torch.inference_mode()
def embed_windows(model: JointEmbedder, clips: Clips) -> NDArray[np.float64]:
    """The mean over a clip's windows at unit length, float64 [B, D]; NaN as for `Embed`."""
    audio = resample(clips.audio, clips.sample_rate, model.sample_rate)
    finite = np.isfinite(audio).all(1, keepdims=True)
    size = round(model.window_seconds * model.sample_rate)
    windows = split_windows(np.where(finite, audio, np.float32(0)), size)
    B, W, N = windows.shape
    parts = torch.from_numpy(windows.reshape(B * W, N)).split(EMBEDDED_WINDOWS)
    sounds = torch.cat([model.embed_audio(part) for part in parts]).double()
    vectors = F.normalize(sounds.view(B, W, -1).mean(1), dim=-1).cpu().numpy()
    return np.where(finite, vectors, np.nan)
