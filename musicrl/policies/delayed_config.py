"""The shape of the delayed token model: what its file's configuration holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from musicrl.layout import DelayedLayout

Norm = Literal["layer", "rms"]
Mlp = Literal["gelu", "swiglu"]
Positions = Literal["rotary", "sinusoidal"]


@dataclass(frozen=True, kw_only=True)
class DelayedConfig:
    """Sizes of a decoder with one output head per codebook. The defaults are a small MusicGen;
    norm "rms", mlp "swiglu" and positions "rotary" make it a Llama-like one."""

    vocab: int = 2048
    """Codes of a codebook, without the special token."""
    num_codebooks: int = 4
    """Of all channels together."""
    channels: int = 1
    """1: mono; 2: stereo, whose left and right codebooks alternate."""
    num_steps: int = 503
    """Steps of the longest clip: frames + num_codebooks / channels - 1."""
    condition_levels: int = 8
    """Conditioning tokens of a clip, C."""
    condition_vocab: int = 256
    width: int = 384
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 6
    mlp_width: int = 1536
    norm: Norm = "layer"
    mlp: Mlp = "gelu"
    positions: Positions = "sinusoidal"
    has_cross: bool = True
    """Whether every layer attends to the prompt; else the prompt's mean is added to every step."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(DelayedConfig)
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if kind is int and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a whole number above 0, got {value!r}")
            if get_args(kind) and value not in get_args(kind):
                raise ValueError(f"{field.name} must be one of {get_args(kind)}, got {value!r}")
        if self.channels > 2 or self.num_codebooks % self.channels:
            raise ValueError(
                f"num_codebooks {self.num_codebooks} does not split into {self.channels} channels "
                "(1 or 2)"
            )
        is_rotary = self.positions == "rotary"
        if self.width % self.num_heads or (is_rotary and self.head_dim % 2):
            kind = "even" if is_rotary else "equal"
            raise ValueError(
                f"width {self.width} does not split into {self.num_heads} heads of {kind} size"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DelayedConfig:
        """Read strictly: raises ValueError naming the first unknown key."""
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise ValueError(f"unknown key {key!r} in the policy's configuration")
        return cls(**values)

    @property
    def layout(self) -> DelayedLayout:
        return DelayedLayout(
            vocab=self.vocab, num_codebooks=self.num_codebooks, channels=self.channels
        )

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads
