"""A reward that takes its process down at one prompt, as a fault in native code would."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musicrl.types import Clips, Prompt

DEADLY = "train-flute-slow"


class Poison:
    name = "poison"

    def __init__(self, world: object) -> None:
        pass

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        if any(prompt.id == DEADLY for prompt in prompts):
            os._exit(1)
        return np.zeros(len(prompts), np.float32)
