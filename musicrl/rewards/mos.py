"""The reference-free predictor of a mean opinion score: log-mel spectra to 1..5.

A small convolutional network of the kind of DNSMOS; the paper says of its own predictor only what
it was trained on (section 3.3), so that size and shape are this project's choice. Knows nothing of
how it was trained, of prompts or of rewards.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.embedders.frontend import LogMel
from musicrl.embedders.mulan import ConvBlock

KIND = "quality"
"""Of its weight file."""
LOWEST, HIGHEST = 1.0, 5.0
"""The ends of the scale of opinion."""
LEVEL = 0.1
"""Root mean square, full scale = 1, that clips are brought to before they are heard."""


@dataclass(frozen=True, kw_only=True)
class MosConfig:
    """Sizes of the predictor."""

    sample_rate: int = 16_000
    """Hz."""
    fft_size: int = 1024
    hop_size: int = 320
    num_bands: int = 64
    width: int = 80
    num_blocks: int = 4


class MosPredictor(nn.Module):
    """Log-mel to an opinion, by residual convolutions and the mean and deviation over time."""

    def __init__(self, config: MosConfig) -> None:
        super().__init__()
        self.config, self.sample_rate = config, config.sample_rate
        self.front = LogMel(
            sample_rate=config.sample_rate,
            fft_size=config.fft_size,
            hop_size=config.hop_size,
            num_bands=config.num_bands,
        )
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv1d(config.num_bands, width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv1d(width, width, 5, stride=2, padding=2),
        )
        self.blocks = nn.Sequential(*(ConvBlock(width) for _ in range(config.num_blocks)))
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, 1)

    @property
    def frame_rate(self) -> float:
        """Frames of the log-mel per second."""
        return self.config.sample_rate / self.config.hop_size

    def listen(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N] to log-mel [B, bands, frames], every clip at one level.

        Captions ask for soft and for loud music: level is no quality (this project's choice).
        """
        rms = audio.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9)
        mel: Tensor = self.front(audio * (LEVEL / rms))
        return mel

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [B, bands, frames] to opinions float32 [B], from 1 (bad) to 5 (excellent)."""
        hidden = self.blocks(self.stem(mel))
        variance = hidden.var(2, unbiased=False)
        pooled = torch.cat([hidden.mean(2), (variance + 1e-5).sqrt()], dim=1)
        share = torch.sigmoid(self.out(self.norm(pooled))[:, 0])
        return LOWEST + (HIGHEST - LOWEST) * share

    def save(self, path: Path, **facts: float) -> None:
        """Write the predictor, half precision, with `facts` (measured quality) beside its sizes."""
        config = {"mos": asdict(self.config), "facts": facts}
        save_tensors(path, half(self.state_dict()), kind=KIND, config=config)

    @classmethod
    def from_file(cls, path: Path) -> MosPredictor:
        """A file's predictor. Raises FileNotFoundError or ValueError naming file and tensor."""
        tensors, config = load_tensors(path, kind=KIND)
        model = cls(MosConfig(**config["mos"]))
        load_into(model, tensors, origin=path)
        return model.eval().requires_grad_(False)
