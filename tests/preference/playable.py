"""Clips and pools to serve that no model had to make, and a clock that tests turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from musicrl.audio import write_wav
from musicrl.preference.clip import PlayableClip
from musicrl.preference.dataset import DatasetWriter
from musicrl.preference.pool import TABLE
from musicrl.preference.rows import pool_batch
from musicrl.preference.schema import POOL
from musicrl.types import Prompt, TokenClip


class Clock:
    """Seconds since 1970, by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def playable(prompt: int, index: int, *, seconds: float = 2.0) -> PlayableClip:
    """Clip `index` of prompt number `prompt`, with tokens of its own."""
    tokens = np.arange(15, dtype=np.int16).reshape(5, 3) + 100 * prompt + index - 7
    return PlayableClip(
        prompt=Prompt(id=f"p{prompt}", text=f"tune number {prompt}", source="test"),
        clip=TokenClip(id=f"clip-{prompt}-{index}", tokens=tokens, policy=f"policy-{index}@0f"),
        seed=2**64 - 1 - index,
        wav=f"clip-{prompt}-{index}.wav",
        seconds=seconds,
    )


def write_tones(folder: Path, *, prompts: int = 3, clips: int = 4, seconds: float = 0.5) -> Path:
    """A pool of tones, each of a pitch of its own."""
    rows = [playable(p, i, seconds=seconds) for p in range(prompts) for i in range(clips)]
    with DatasetWriter(folder / TABLE, POOL) as writer:
        writer.write(pool_batch(rows))
    for number, row in enumerate(rows):
        turns = (220 + 40 * number) * np.arange(round(16000 * seconds)) / 16000
        write_wav(folder / row.wav, (0.3 * np.sin(2 * np.pi * turns)).astype(np.float32), 16000)
    return folder
