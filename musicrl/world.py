"""A world: the policy, codec and embedder that belong together, loaded from one folder.

The shipped tiny world is the default. Everything that turns a prompt into audio is reached from
here; rewards take their embedder from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.checkpoint import save_tensors
from musicrl.codecs.base import Codec
from musicrl.codecs.fine import FINE_FILE, FineShape, FineStage, SoundStorm
from musicrl.codecs.table import load_codec
from musicrl.embedders.mulan import MuLan
from musicrl.layout import Layout
from musicrl.policies.musiclm import KIND, MusicLM

SHIPPED = Path(__file__).parent / "data" / "tiny"
DECODE_CLIPS = 16
"""Clips decoded at once, to bound memory."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The models of one sound world."""

    policy: MusicLM
    codec: Codec
    embedder: MuLan
    fine: FineStage | None = None
    """Fills the levels that the policy does not write, and never learns (none: they stay empty)."""
    folder: Path = SHIPPED
    """Where they were found, and where rewards find files of their own."""

    @classmethod
    def load(cls, folder: Path | None = None, policy: Path | None = None) -> World:
        """The world of a folder (none: the shipped one), with another policy file if given: found
        as `find_policy` says.

        Raises FileNotFoundError or ValueError naming the file, and ValueError when the parts do
        not fit each other.
        """
        folder = SHIPPED if folder is None else folder
        world = cls(
            policy=MusicLM.from_file(find_policy(folder, policy)),
            codec=load_codec(folder / "codec.safetensors"),
            embedder=MuLan.from_file(folder / "embedder.safetensors"),
            fine=SoundStorm.from_file(fine) if (fine := folder / FINE_FILE).is_file() else None,
            folder=folder,
        )
        world.check()
        return world

    def check(self) -> None:
        """Raise ValueError naming the sizes where policy, codec and embedder do not fit."""
        pairs = {
            "coarse vocabulary": (max(self.layout.vocab_sizes[1:]), self.codec.vocab_size),
            "conditioning levels": (
                self.policy.config.condition_levels,
                self.embedder.config.condition_levels,
            ),
            "conditioning vocabulary": (
                self.policy.config.condition_vocab,
                self.embedder.config.condition_vocab,
            ),
            "sample rate": (self.embedder.sample_rate, self.codec.sample_rate),
        }
        for name, (left, right) in pairs.items():
            if left != right:
                raise ValueError(f"the world's parts differ in {name}: {left} and {right}")
        written, known = self.policy.config.coarse_levels, self.codec.num_codebooks
        if written > known:
            raise ValueError(f"the policy writes {written} coarse levels, the codec knows {known}")
        if self.fine is not None and self.fine.shape != self.fine_shape:
            raise ValueError(f"the fine stage is of {self.fine.shape}, the world {self.fine_shape}")

    @property
    def fine_shape(self) -> FineShape:
        """What a fine stage of this world reads and writes."""
        written = self.policy.config.layout
        return FineShape(
            semantic_vocab=written.semantic_vocab,
            vocab_size=self.codec.vocab_size,
            coarse_levels=written.coarse_levels,
            num_levels=self.codec.num_codebooks,
            frames_per_step=written.codec_frames_per_step,
        )

    @property
    def layout(self) -> Layout:
        return self.policy.layout

    @property
    def written_levels(self) -> int:
        """First levels of the codec that the policy writes."""
        return self.policy.config.coarse_levels

    @property
    def licence(self) -> None:
        """Its weights are this project's own."""
        return

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.codec.sample_rate

    @property
    def clip_seconds(self) -> float:
        """Length of the clips that the policy samples."""
        return self.policy.num_steps * self.step_seconds

    @property
    def step_seconds(self) -> float:
        """Length of one step of the grid."""
        return self.policy.config.codec_frames_per_step / self.codec.frame_rate

    def steps_of(self, seconds: float | None) -> int:
        """Steps of a clip of `seconds` (none: of a whole clip).

        Raises ValueError when the policy plays no such clip.
        """
        if seconds is None:
            return self.policy.num_steps
        steps = round(seconds / self.step_seconds) if math.isfinite(seconds) else 0
        is_whole = abs(steps * self.step_seconds - seconds) < 1e-6
        if not (is_whole and 1 <= steps <= self.policy.num_steps):
            raise ValueError(
                f"clip_seconds {seconds:g} is not a multiple of {self.step_seconds:g} up to "
                f"{self.clip_seconds:g}, the clips of this policy"
            )
        return steps

    def conditioner(self, texts: Sequence[str]) -> Tensor:
        """Conditioning tokens int64 [B, C] of texts."""
        return self.embedder.condition(texts)

    def decode(self, tokens: NDArray[np.int16]) -> NDArray[np.float32]:
        """Token grids [B, S, K] to audio float32 [B, N]; each clip independent of its batch, up to
        rounding."""
        parts = np.split(tokens, range(DECODE_CLIPS, len(tokens), DECODE_CLIPS))
        return torch.cat([self.codec.decode(self.codes_of(part)) for part in parts]).cpu().numpy()

    def decode_channels(self, tokens: NDArray[np.int16]) -> NDArray[np.float32]:
        """As `decode`, to audio float32 [B, 1, N]."""
        return self.decode(tokens)[:, None]

    def codes_of(self, tokens: NDArray[np.int16]) -> Tensor:
        """Token grids [B, S, K] to codes int64 [B, Q', T], where the codec lies: with a fine stage,
        of all levels."""
        device = self.codec.device
        codes = torch.from_numpy(self.layout.to_codes(tokens).astype(np.int64)).to(device)
        if self.fine is None:
            return codes
        semantic = self.policy.config.layout.to_semantic(tokens).astype(np.int64)
        return self.fine.fill(torch.from_numpy(semantic).to(device), codes)

    def save_policy(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write a policy's tensors, of this world's shape, whole or not at all: a file that `load` reads."""
        save_tensors(path, tensors, kind=KIND, config=self.policy.config_dict)

    def move_players(self, device: torch.device) -> None:
        """Bring to `device` all that samples and decodes; the embedder stays where it is."""
        self.policy.to(device)
        self.codec.to(device)
        if self.fine is not None:
            self.fine.to(device)


def find_world(weights: Path | None) -> Path:
    """The folder of a world: the shipped tiny one (none), `weights`, or, where that is a bare name
    and no folder, the one of that name that ships."""
    if weights is None:
        return SHIPPED
    is_name = weights.name == str(weights) and not weights.is_dir()
    shipped = SHIPPED.parent / weights
    return shipped if is_name and shipped.is_dir() else weights


def find_policy(folder: Path, policy: Path | None) -> Path:
    """The file of a policy: the folder's own (none), `policy`, or, where that is a bare name and no
    file, the file of that name in the folder."""
    if policy is None:
        return folder / "policy.safetensors"
    is_name = policy.name == str(policy)
    return folder / policy if is_name and not policy.is_file() else policy
