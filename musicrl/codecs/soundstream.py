"""SoundStream: a causal convolutional codec with residual vector quantisation (paper.md 2.7).

The codec of the paper's system: 24 kHz, 50 Hz, 12 levels of 1024 codes. Training it, its
discriminators and its codebooks' moving averages are elsewhere (`pretrain.soundstream`). In the
tiny world the spectral codec stands in its place.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from musicrl.bounds import at_least
from musicrl.checkpoint import load_into, load_tensors, save_tensors
from musicrl.codecs.causal import CausalConv, decoder_block, encoder_block
from musicrl.codecs.rvq import ResidualQuantizer

SOUNDSTREAM = "soundstream"


@dataclass(frozen=True, kw_only=True)
class SoundStreamConfig:
    """Sizes of the codec."""

    sample_rate: int = 24_000
    """Hz."""
    strides: tuple[int, ...] = (3, 4, 5, 8)
    """Of the encoder's blocks: their product is the samples of a frame. MusicLM states 480, not its
    factors; these are this project's choice."""
    width: int = 32
    """Channels of the first block; each block doubles them (SoundStream's C)."""
    embedding_size: int = 128
    """Of the vectors that are quantised (this project's choice)."""
    num_codebooks: int = 12
    vocab_size: int = 1024

    def __post_init__(self) -> None:
        if not self.strides or min(self.strides) < 2:
            raise ValueError(f"strides must be 2 or more each, got {self.strides}")
        at_least(1, sample_rate=self.sample_rate, width=self.width)
        at_least(1, embedding_size=self.embedding_size, num_codebooks=self.num_codebooks)
        at_least(1, vocab_size=self.vocab_size)

    @property
    def frame_size(self) -> int:
        """Samples of one frame of codes."""
        return math.prod(self.strides)


class SoundStream(nn.Module):
    """Encoder, quantizer and decoder (SoundStream section III)."""

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.num_codebooks, self.vocab_size = config.num_codebooks, config.vocab_size
        widths = [config.width * 2**i for i in range(len(config.strides))]
        pairs = list(zip(widths, config.strides, strict=True))
        deepest = 2 * widths[-1]
        self.encoder = nn.Sequential(
            CausalConv(1, config.width, 7),
            *(encoder_block(width, stride) for width, stride in pairs),
            nn.ELU(),
            CausalConv(deepest, config.embedding_size, 3),
        )
        self.decoder = nn.Sequential(
            CausalConv(config.embedding_size, deepest, 7),
            *(decoder_block(width, stride) for width, stride in reversed(pairs)),
            nn.ELU(),
            CausalConv(config.width, 1, 7),
        )
        self.quantizer = ResidualQuantizer(
            config.num_codebooks, config.vocab_size, config.embedding_size
        )

    @property
    def frame_size(self) -> int:
        """Samples of one frame of codes."""
        return self.config.frame_size

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sample_rate / self.frame_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.quantizer.codebooks.device

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N] to codes int64 [B, Q, T]; raises as `embed`."""
        return self.quantizer.encode(self.embed(audio)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, Q', T] of the first Q' <= Q levels to audio float32 [B, N]."""
        return self.synthesise(self.quantizer.decode(codes.transpose(1, 2))).clamp(-1, 1)

    def embed(self, audio: Tensor) -> Tensor:
        """Audio [B, N] to vectors [B, T, D] that are not quantised.

        Raises ValueError when N is not a positive multiple of `frame_size`.
        """
        _, N = audio.shape
        if not N or N % self.frame_size:
            raise ValueError(f"audio of {N} samples is not a multiple of {self.frame_size}")
        hidden: Tensor = self.encoder(audio[:, None])
        return hidden.transpose(1, 2)

    def synthesise(self, vectors: Tensor) -> Tensor:
        """Vectors [B, T, D] to audio [B, N], not yet kept within [-1, 1]."""
        audio: Tensor = self.decoder(vectors.transpose(1, 2))
        return audio[:, 0]

    def save(self, path: Path, **facts: float) -> None:
        """Write the codec with `facts` (its measured quality) beside its sizes."""
        config = {"family": SOUNDSTREAM, "codec": asdict(self.config), "facts": facts}
        save_tensors(path, self.state_dict(), kind="codec", config=config)

    @classmethod
    def from_file(cls, path: Path) -> SoundStream:
        """The codec of a file. Raises FileNotFoundError or ValueError naming file and tensor."""
        tensors, config = load_tensors(path, kind="codec")
        sizes = {**config["codec"], "strides": tuple(config["codec"]["strides"])}
        codec = cls(SoundStreamConfig(**sizes))
        load_into(codec, tensors, origin=path)
        return codec.eval().requires_grad_(False)
