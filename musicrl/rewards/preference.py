"""User preference: the score of a model that learned from comparisons (paper sections 3.3, 4.2).

It reads the clip's TOKENS, and no audio. The raw score is a log-odds and unbounded; it enters the
mix as it is, as the paper states no normalisation: a clip that scores 1 higher than another is
preferred e times as often. What the scores deviate by among the clips of a prompt stands in the
model's file, as `deviation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musicrl.policies.preference import PreferenceModel, read_facts
from musicrl.types import Clips, Prompt

PREFERENCE = "preference"
PREFERENCE_FILE = "preference.safetensors"
"""Of a world's folder."""


class PreferenceWorld(Protocol):
    """What the reward asks of a world."""

    @property
    def folder(self) -> Path:
        """Where a reward finds a file of its own; it is read when the reward is asked for."""
        ...

    @property
    def policy(self) -> nn.Module:
        """Where a model that reads text finds the encoder."""
        ...

    def conditioner(self, texts: Sequence[str]) -> Tensor:
        """Conditioning tokens int64 [B, C] of texts."""
        ...


class Preference:
    """Score of the first and of the last window of a clip, averaged.

    A window is as long as the clips that the model learned from (the paper's: 20 s of 30 s); a
    shorter clip is one window.
    """

    name = PREFERENCE

    def __init__(
        self, model: PreferenceModel, world: PreferenceWorld, *, window: int, batch: int = 128
    ) -> None:
        self._model, self._world = model, world
        self._window = window
        """Steps."""
        self._device = torch.device("cpu")
        self._batch = batch
        """Clips that are scored at a time."""

    def move(self, device: torch.device) -> None:
        """The model alone: the conditioning stays where the world has it."""
        self._model.to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B] for tokens [B, S, K].

        Raises ValueError for clips without tokens, or whose grid is not the model's.
        """
        if clips.tokens is None:
            raise ValueError("the reward 'preference' reads tokens, and audio files have none")
        _, S, K = clips.tokens.shape
        layout = self._model.layout
        if layout.num_streams != K:
            raise ValueError(f"grids of {K} streams, the model reads {layout.num_streams}")
        conditions = self._conditions([prompt.text for prompt in prompts]).to(self._device)
        size = min(self._window, S)
        ends = [layout.cut(clips.tokens, start, size) for start in (0, S - size)]
        scores = torch.stack([self._scores(end, conditions) for end in ends]).mean(0)
        found: NDArray[np.float32] = scores.cpu().numpy()
        return found

    def _conditions(self, texts: Sequence[str]) -> Tensor:
        """int64 [B, C]; a caption that comes several times is embedded once."""
        unique = list(dict.fromkeys(texts))
        row = {text: i for i, text in enumerate(unique)}
        return self._world.conditioner(unique)[[row[text] for text in texts]]

    def _scores(self, grids: NDArray[np.int16], conditions: Tensor) -> Tensor:
        tokens = torch.from_numpy(grids.astype(np.int64)).to(self._device)
        parts = zip(tokens.split(self._batch), conditions.split(self._batch), strict=True)
        return torch.cat([self._model(*part) for part in parts])


def load_preference(world: PreferenceWorld, file: Path | None = None) -> Preference:
    """The reward of a model's file (none: that of the world's folder).

    Raises FileNotFoundError naming the file and what makes it, ValueError when it is damaged.
    """
    path = file or world.folder / PREFERENCE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: `musicrl fit-reward` makes it from comparisons"
        )
    model, facts = PreferenceModel.from_file(path, world.policy)
    return Preference(model.eval().requires_grad_(False), world, window=int(facts["window_steps"]))


def raters_of(folder: Path, file: Path | None = None) -> str:
    """Who chose what a model learned from, as its file (none: that of a world's folder) says:
    people, or simulated. Raises FileNotFoundError or ValueError naming the file."""
    return str(read_facts(file or folder / PREFERENCE_FILE).get("raters", "unknown"))
