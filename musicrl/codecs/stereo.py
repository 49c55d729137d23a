"""Two channels through one mono codec, as MusicGen's stereo checkpoints play them.

    codes [B, 2Q, T]   left 0, right 0, left 1, right 1, ...  ──► two clips, side by side

What is scored is the mean of the channels; mono audio is encoded as two equal channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from musicrl.codecs.base import ChannelCodec, Codec
from musicrl.codecs.huggingface import HuggingFaceCodec
from musicrl.policies.folder import blaming, read_json

CHANNELS = 2


class StereoCodec:
    """Left and right of a mono codec, whose codebooks alternate."""

    def __init__(self, mono: Codec) -> None:
        self.mono = mono

    @property
    def channels(self) -> int:
        return CHANNELS

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.mono.sample_rate

    @property
    def frame_size(self) -> int:
        """Samples of one frame of codes, in each channel."""
        return self.mono.frame_size

    @property
    def frame_rate(self) -> float:
        """Frames per second of the codes."""
        return self.mono.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Of both channels."""
        return CHANNELS * self.mono.num_codebooks

    @property
    def vocab_size(self) -> int:
        return self.mono.vocab_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mono.device

    def to(self, device: torch.device) -> object:
        """Move it, in place."""
        self.mono.to(device)
        return self

    def encode(self, audio: Tensor) -> Tensor:
        """Mono audio float32 [B, N] as two equal channels: codes int64 [B, 2Q, T]."""
        return self.mono.encode(audio).repeat_interleave(CHANNELS, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, 2Q', T] to the mean float32 [B, N] of the channels; errors as below."""
        return self.decode_channels(codes).mean(1)

    def decode_channels(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, 2Q', T] of the first Q' levels of both channels to audio float32
        [B, 2, N]. Raises ValueError for an odd number of codebooks."""
        if codes.shape[1] % CHANNELS:
            raise ValueError(f"{codes.shape[1]} codebooks do not split into two channels")
        return torch.stack([self.mono.decode(codes[:, k::CHANNELS]) for k in range(CHANNELS)], 1)


def musicgen_codec(folder: Path) -> ChannelCodec:
    """The codec of a whole MusicGen checkpoint, in as many channels as its decoder writes.

    Raises FileNotFoundError or ValueError naming the file, and ValueError without transformers.
    """
    mono = HuggingFaceCodec.from_musicgen(folder)
    with blaming(folder / "config.json"):
        channels = read_json(folder / "config.json")["decoder"].get("audio_channels", 1)
    return StereoCodec(mono) if channels == CHANNELS else mono
