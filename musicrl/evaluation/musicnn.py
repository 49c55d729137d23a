"""The music tagger musicnn (Pons and Serra 2019, arXiv 1909.06654): audio to 50 tags.

Written anew from the published layer shapes; the weights are the authors', trained on MagnaTagATune
(see data/musicnn/NOTICE). It serves as an independent judge, and is never a reward.

    log-mel [F, T] -> timbral and temporal filters -> residual convolutions -> pool -> tags
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from musicrl.checkpoint import load_into

WEIGHTS = Path(__file__).parent.parent / "data" / "musicnn" / "MTT_musicnn.safetensors"
SAMPLE_RATE = 16_000
WINDOW, HOP, MELS, PATCH = 512, 256, 96, 187
"""Samples of a spectrum, samples between spectra, mel bands, spectra of a patch (3 s)."""
# fmt: off
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast",
    "piano", "ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male",
    "singing", "vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman",
    "male vocal", "no vocal", "pop", "soft", "sitar", "solo", "man", "classic", "choir", "voice",
    "new age", "dance", "male voice", "female vocal", "beats", "harp", "cello", "no voice", "weird",
    "country", "metal", "female voice", "choral",
)
# fmt: on
EPSILON = 1e-3
"""Of the batch normalisation, as in the published graph."""


class LogMel(nn.Module):
    """Audio [B, N] to log10(1 + 10000 x mel power) [B, T, F]."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", torch.from_numpy(slaney_filters()), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        spectrum = torch.stft(
            audio, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True
        )
        mel = self.filters @ spectrum.abs().square()
        return torch.log10(1 + 10_000 * mel).transpose(1, 2)


class Affine(nn.Module):
    """A trained batch normalisation as scale and shift of dimension 1."""

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.scale.view(shape) + self.shift.view(shape)


class Musicnn(nn.Module):
    """Patches of log-mel spectrum to logits of the tags; attributes are named as in the file."""

    def __init__(self, *, tags: int = len(TAGS), width: int = 64, units: int = 200) -> None:
        super().__init__()
        features = 2 * 204 + 3 * 51
        pooled = 2 * (features + 3 * width)
        self.bn0 = Affine(1)
        self.f74, self.f77 = nn.Conv2d(1, 204, (7, 38)), nn.Conv2d(1, 204, (7, 67))
        self.t1, self.t2, self.t3 = (nn.Conv2d(1, 51, (size, 1)) for size in (128, 64, 32))
        self.bnf = nn.ModuleList([Affine(n) for n in (204, 204, 51, 51, 51)])
        self.m1 = nn.Conv1d(features, width, 7, padding=3)
        self.m2, self.m3 = (nn.Conv1d(width, width, 7, padding=3) for _ in range(2))
        self.bnm = nn.ModuleList([Affine(width) for _ in range(3)])
        self.bnp, self.fc = Affine(pooled), nn.Linear(pooled, units)
        self.bnd, self.out = Affine(units), nn.Linear(units, tags)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, T, F] to logits [B, 50]."""
        return self.tag(self.embed(patches))

    def tag(self, units: Tensor) -> Tensor:
        """The last layer: `embed` [B, 200] to logits [B, 50]."""
        logits: Tensor = self.out(self.bnd(units))
        return logits

    def embed(self, patches: Tensor) -> Tensor:
        """Patches [B, T, F] to the last layer but one [B, 200], after its ReLU."""
        features = self._features(self.bn0(patches[:, None]))
        first = self.bnm[0](F.relu(self.m1(features)))
        second = self.bnm[1](F.relu(self.m2(first))) + first
        third = self.bnm[2](F.relu(self.m3(second))) + second
        stack = torch.cat([features, first, second, third], 1)
        pooled = torch.stack([stack.amax(2), stack.mean(2)], 2).flatten(1)
        return F.relu(self.fc(self.bnp(pooled)))

    def _features(self, x: Tensor) -> Tensor:
        """Spectra [B, 1, T, F] to the maxima over frequency of each filter, [B, 561, T]."""
        filters = (self.f74, self.f77, self.t1, self.t2, self.t3)
        maxima = []
        for convolution, normal in zip(filters, self.bnf, strict=True):
            size = convolution.kernel_size[0]
            padded = F.pad(x, (0, 0, (size - 1) // 2, size // 2))
            maxima.append(normal(F.relu(convolution(padded))).amax(3))
        return torch.cat(maxima, 1)


class Tagger(nn.Module):
    """Audio to tag probabilities, with the shipped weights."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        super().__init__()
        self.front, self.network = LogMel(), Musicnn()
        load_into(self.network, _read(weights), origin=weights)
        self.eval().requires_grad_(False)

    def forward(self, audio: Tensor) -> Tensor:
        """Probabilities [B, 50] of `TAGS`, the mean over consecutive patches of 3 s, for audio
        float32 [B, N] at 16 kHz; a remainder is left out and a short clip padded."""
        return self.hear(audio)[0]

    @torch.inference_mode()
    def hear(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """The same probabilities, and the last layer but one [B, 200], its mean over the patches:
        an embedding of what the clip sounds like."""
        mel = self.front(audio)
        mel = F.pad(mel, (0, 0, 0, max(0, PATCH - mel.shape[1])))
        patches = mel.unfold(1, PATCH, PATCH).transpose(2, 3)
        B, W, T, M = patches.shape
        units = self.network.embed(patches.reshape(B * W, T, M))
        probabilities = self.network.tag(units).sigmoid()
        return probabilities.view(B, W, -1).mean(1), units.view(B, W, -1).mean(1)


def slaney_filters() -> NDArray[np.float32]:
    """Triangular mel filters float32 [MELS, WINDOW / 2 + 1] of equal area (Slaney's scale)."""
    top = _hertz_to_mel(np.array(SAMPLE_RATE / 2))
    edges = _mel_to_hertz(np.linspace(0.0, float(top), MELS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    slopes = edges[:, None] - bins[None]
    widths = np.diff(edges)[:, None]
    triangles = np.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:])
    areas = 2 / (edges[2:] - edges[:-2])
    filters: NDArray[np.float32] = (np.maximum(0, triangles) * areas[:, None]).astype(np.float32)
    return filters


def _hertz_to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear below 1 kHz (15 mel), logarithmic above."""
    above = 15 + np.log(np.maximum(hertz, 1000) / 1000) / (np.log(6.4) / 27)
    return np.where(hertz >= 1000, above, hertz * 3 / 200)


def _mel_to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel >= 15, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)), mel * 200 / 3)


def _read(path: Path) -> Mapping[str, Tensor]:
    """The published tensors in float32, their batch normalisations folded."""
    if not path.is_file():
        raise FileNotFoundError(f"no tagger weights at {path}")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as fault:
        raise ValueError(f"{path} is not a readable safetensors file: {fault}") from fault
    layers = [name.removesuffix(".gamma") for name in tensors if name.endswith(".gamma")]
    for layer in layers:
        gamma, beta, mean, var = (
            tensors.pop(f"{layer}.{part}") for part in ("gamma", "beta", "mean", "var")
        )
        tensors[f"{layer}.scale"] = gamma * torch.rsqrt(var + EPSILON)
        tensors[f"{layer}.shift"] = beta - mean * tensors[f"{layer}.scale"]
    return tensors
