"""The reward protocol: clips and their prompts to one number a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from musicrl.types import Clips, Prompt


class Reward(Protocol):
    """A score of whole clips. A clip that cannot be scored gets NaN; it is masked, never a zero."""

    name: str

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B], one per clip, for prompts of the same length."""
        ...


@runtime_checkable
class Movable(Protocol):
    """A reward whose model can leave the CPU; one without this method stays there."""

    def move(self, device: torch.device) -> None:
        """Bring the model to `device`. Clips and scores are the CPU's all the same."""
        ...
