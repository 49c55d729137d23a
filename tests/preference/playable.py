"""Clips, pools and comparisons that no model had to make, and a clock that tests turn."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from musicrl.audio import write_wav
from musicrl.preference.clip import PlayableClip
from musicrl.preference.dataset import DatasetWriter
from musicrl.preference.pool import TABLE
from musicrl.preference.rows import pool_batch
from musicrl.preference.schema import POOL
from musicrl.types import Comparison, Prompt, TokenClip


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


def token_clip(number: int, steps: int = 4, streams: int = 2) -> TokenClip:
    """Random tokens under the name of their number."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(-(2**15), 2**15, (steps, streams), dtype=np.int16)
    return TokenClip(id=f"clip-{number}", tokens=tokens, policy="base@00")


def compared(number: int) -> Comparison:
    """Comparison `number`, of one of three prompts, by one of five raters."""
    return Comparison(
        id=f"pair-{number}",
        prompt=Prompt(id=f"p{number % 3}", text=f"a tune, number {number % 3}"),
        clip_a=token_clip(2 * number),
        clip_b=token_clip(2 * number + 1, steps=3 + number % 2),
        choice=("a", "b", "none")[number % 3],
        heard_a=0.5,
        heard_b=1.0,
        rater=f"rater-{number % 5}",
        simulated=False,
        time=datetime(2024, 2, 6, 12, 0, number % 60, 250, tzinfo=UTC),
    )
