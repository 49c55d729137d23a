"""The codec protocol: audio to discrete codes and back."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """A residual-vector-quantised audio codec."""

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    @property
    def frame_size(self) -> int:
        """Samples of one frame of codes."""
        ...

    @property
    def frame_rate(self) -> float:
        """Frames per second of the codes."""
        ...

    @property
    def num_codebooks(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def to(self, device: torch.device) -> object:
        """Move it, in place."""
        ...

    def encode(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N], N a multiple of `frame_size`, to codes int64 [B, Q, T]."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, Q', T] of the first Q' <= Q levels to audio float32 [B, N], of all
        channels their mean."""
        ...


class ChannelCodec(Codec, Protocol):
    """A codec that may play several channels."""

    @property
    def channels(self) -> int: ...

    def decode_channels(self, codes: Tensor) -> Tensor:
        """As `decode`, to audio float32 [B, channels, N]."""
        ...
