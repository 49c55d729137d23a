"""A small MuLan: audio and text towers trained to agree on what a clip is.

Its cosine is the text-adherence reward; its audio tower's middle layer gives the semantic tokens;
its vectors, residually quantised, condition the policy. Another one, of other seed and front end,
serves as a judge that is never rewarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicrl.bounds import at_least
from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.codecs.rvq import ResidualQuantizer
from musicrl.embedders.frontend import LogMel
from musicrl.embedders.text import TextTower


@dataclass(frozen=True, kw_only=True)
class MuLanConfig:
    """Sizes of the towers."""

    sample_rate: int = 16_000
    """Hz."""
    window_seconds: float = 2.0
    fft_size: int = 1024
    hop_size: int = 320
    num_bands: int = 80
    width: int = 160
    num_blocks: int = 4
    semantic_block: int = 1
    """Blocks below the layer whose features become semantic tokens."""
    text_width: int = 96
    text_layers: int = 2
    num_buckets: int = 2048
    embedding_size: int = 128
    condition_levels: int = 8
    """Residual codebooks that turn an embedding into conditioning tokens (MusicLM: 12)."""
    condition_vocab: int = 64
    """Codes of each (MusicLM: 1024)."""

    def __post_init__(self) -> None:
        at_least(1, sample_rate=self.sample_rate, fft_size=self.fft_size, hop_size=self.hop_size)
        at_least(1, num_bands=self.num_bands, width=self.width, text_width=self.text_width)
        at_least(1, num_buckets=self.num_buckets, embedding_size=self.embedding_size)
        at_least(0, num_blocks=self.num_blocks, text_layers=self.text_layers)
        at_least(0, condition_levels=self.condition_levels, semantic_block=self.semantic_block)


class ConvBlock(nn.Module):
    """Residual depthwise-separable convolution over time (after ConvNeXt)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        mixed = self.mix(hidden).transpose(1, 2)
        change: Tensor = self.down(F.gelu(self.up(self.norm(mixed))))
        return hidden + change.transpose(1, 2)


class AudioTower(nn.Module):
    """Log-mel [B, bands, frames] to float32 [B, D], not yet normalised; a frame in four is kept."""

    def __init__(self, config: MuLanConfig) -> None:
        super().__init__()
        width = config.width
        self.semantic_block = config.semantic_block
        self.stem = nn.Sequential(
            nn.Conv1d(config.num_bands, width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv1d(width, width, 5, stride=2, padding=2),
        )
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, config.embedding_size)

    def forward(self, mel: Tensor) -> Tensor:
        hidden: Tensor = self.stem(mel)
        for block in self.blocks:
            hidden = block(hidden)
        pooled = torch.cat([hidden.mean(2), hidden.amax(2)], dim=1)
        vectors: Tensor = self.out(self.norm(pooled))
        return vectors

    def features(self, mel: Tensor) -> Tensor:
        """The middle layer, [B, width, frames / 4]."""
        hidden: Tensor = self.stem(mel)
        for block in self.blocks[: self.semantic_block]:
            hidden = block(hidden)
        return hidden


class MuLan(nn.Module):
    """Two towers into one space of unit vectors (MuLan; MusicLM section 2.5), in a tiny size.

    Each tower's mean over the training data is taken off before normalising, so that unrelated
    text and audio score about 0 (this project's choice: it narrows the gap between modalities).
    """

    audio_mean: Tensor
    text_mean: Tensor

    def __init__(self, config: MuLanConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.window_seconds = config.sample_rate, config.window_seconds
        self.front = LogMel(
            sample_rate=config.sample_rate,
            fft_size=config.fft_size,
            hop_size=config.hop_size,
            num_bands=config.num_bands,
        )
        self.audio = AudioTower(config)
        self.text = TextTower(
            num_buckets=config.num_buckets,
            width=config.text_width,
            num_layers=config.text_layers,
            out=config.embedding_size,
        )
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.register_buffer("audio_mean", torch.zeros(config.embedding_size))
        self.register_buffer("text_mean", torch.zeros(config.embedding_size))
        self.quantizer = ResidualQuantizer(
            config.condition_levels, config.condition_vocab, config.embedding_size
        )

    @property
    def window_size(self) -> int:
        """Samples of the audio tower's window."""
        return round(self.window_seconds * self.sample_rate)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, D], unit length."""
        return F.normalize(F.normalize(self.text(texts), dim=-1) - self.text_mean, dim=-1)

    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, window samples] to float32 [B, D], unit length."""
        return self.embed_mel(self.front(audio.to(self.audio_mean.device)))

    def move(self, device: torch.device) -> None:
        self.to(device)

    def embed_mel(self, mel: Tensor) -> Tensor:
        """The same from log-mel [B, bands, frames]."""
        return F.normalize(F.normalize(self.audio(mel), dim=-1) - self.audio_mean, dim=-1)

    def embed_windows(self, audio: Tensor, *, stride_seconds: float = 0.5) -> Tensor:
        """Long audio [B, N] to the embeddings float32 [B, M, D] of its strided windows."""
        mel = self.front(audio)
        rate = self.sample_rate / self.config.hop_size
        size, stride = round(self.window_seconds * rate), round(stride_seconds * rate)
        windows = mel.unfold(2, size, stride).transpose(1, 2)
        B, M = windows.shape[:2]
        return self.embed_mel(windows.flatten(0, 1)).view(B, M, -1)

    def embed_clip(self, audio: Tensor) -> Tensor:
        """Long audio [B, N] to float32 [B, D]: the normalised mean over strided windows.

        As MusicLM conditions (section 3.1: 10 s windows, 1 s stride, averaged embeddings). Not the
        reward, which averages scores.
        """
        return F.normalize(self.embed_windows(audio).mean(1), dim=-1)

    @torch.no_grad()
    def condition(self, texts: Sequence[str]) -> Tensor:
        """Conditioning tokens int64 [B, C] of texts, on the CPU: their embeddings,
        quantised (MusicLM 3.1)."""
        return self.quantizer.encode(self.embed_text(texts)).cpu()

    def save(self, path: Path, *, kind: str = "embedder", **facts: float) -> None:
        """Write the towers, half precision, with `facts` (measured quality) beside their sizes."""
        config = {"mulan": asdict(self.config), "facts": facts}
        save_tensors(path, half(self.state_dict()), kind=kind, config=config)

    @classmethod
    def from_file(cls, path: Path, *, kind: str = "embedder") -> MuLan:
        """The towers of a file. Raises FileNotFoundError or ValueError naming file and tensor."""
        tensors, config = load_tensors(path, kind=kind)
        model = cls(MuLanConfig(**config["mulan"]))
        load_into(model, tensors, origin=path)
        return model.eval().requires_grad_(False)
