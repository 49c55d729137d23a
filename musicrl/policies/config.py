"""The shape of the hierarchical token model: what its file's configuration holds.

Knows sizes only; building and running the networks is trunk.py's and musiclm.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from musicrl.layout import FrameLayout


@dataclass(frozen=True, kw_only=True)
class MusicLMConfig:
    """Sizes of the hierarchical decoder. The paper gives none (paper section 3.1): these are the
    tiny world's, this project's choice."""

    semantic_vocab: int = 256
    coarse_vocab: int = 512
    coarse_levels: int = 2
    codec_frames_per_step: int = 2
    num_steps: int = 75
    """Frames of a clip, S."""
    condition_levels: int = 8
    """Conditioning tokens of a clip, C: RVQ levels of the joint embedding."""
    condition_vocab: int = 256
    width: int = 256
    """Width of the global transformer (over frames)."""
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 4
    depth_width: int = 192
    """Width of the depth transformer (over the streams of a frame)."""
    depth_layers: int = 2
    depth_heads: int = 3
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name} must be a whole number above 0, got {value!r}")
        _require_heads("width", self.width, "num_heads", self.num_heads)
        _require_heads("depth_width", self.depth_width, "depth_heads", self.depth_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> MusicLMConfig:
        """Read strictly: raises ValueError naming the first unknown key."""
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise ValueError(f"unknown key {key!r} in the policy's configuration")
        return cls(**values)

    @property
    def layout(self) -> FrameLayout:
        return FrameLayout(
            semantic_vocab=self.semantic_vocab,
            coarse_vocab=self.coarse_vocab,
            coarse_levels=self.coarse_levels,
            codec_frames_per_step=self.codec_frames_per_step,
        )


def _require_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    if width % heads or (width // heads) % 2:
        raise ValueError(
            f"{width_name} {width} does not split into {heads_name} {heads} heads of even size"
        )
