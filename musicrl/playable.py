"""What a run asks of a world, whatever family of models it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.codecs.base import Codec
from musicrl.layout import Layout
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.musiclm import MusicLM
from musicrl.rewards.table import RewardWorld


class PlayableWorld(RewardWorld, Protocol):
    """A policy, and all that turns a prompt into its conditions and its tokens into audio."""

    @property
    def policy(self) -> MusicLM | DelayedLM: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def written_levels(self) -> int:
        """First levels of the codec that the policy writes."""
        ...

    @property
    def licence(self) -> str | None:
        """Of the weights that all learning here starts from (none: this project's own)."""
        ...

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    @property
    def clip_seconds(self) -> float:
        """Length of a whole clip."""
        ...

    def steps_of(self, seconds: float | None) -> int:
        """Steps of a clip of `seconds` (none: of a whole clip). Raises ValueError when the policy
        plays no such clip."""
        ...

    def decode(self, tokens: NDArray[np.int16]) -> NDArray[np.float32]:
        """Token grids [B, S, K] to audio float32 [B, N], of all channels their mean; each clip
        independent of its batch, up to rounding."""
        ...

    def decode_channels(self, tokens: NDArray[np.int16]) -> NDArray[np.float32]:
        """As `decode`, to audio float32 [B, channels, N]."""
        ...

    def move_players(self, device: torch.device) -> None:
        """Bring to `device` all that samples and decodes; the embedder stays where it is."""
        ...

    def save_policy(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write a policy's tensors, of this world's shape, whole or not at all: a file to load it with."""
        ...
