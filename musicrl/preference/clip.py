"""A clip that can be played: its tokens, where they come from and the wav file to hear them by."""

from __future__ import annotations

from dataclasses import dataclass

from musicrl.types import Prompt, TokenClip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayableClip:
    """One clip of a prompt, as a file in a folder of clips."""

    prompt: Prompt
    clip: TokenClip
    seed: int
    """64 bits: the random stream that it was sampled with."""
    wav: str
    """File name inside the folder of clips."""
    seconds: float
