"""Aesthetics: what listeners would mark a clip on four axes, by Audiobox Aesthetics (Tjandra et al.
2025, arXiv 2502.05139).

The network is its authors' (package audiobox-aesthetics, the extra `aesthetics`); its weights are
read from a folder in the Hub's form, and nothing is downloaded unless told. It reads no caption.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musicrl.audio import loudness, resample
from musicrl.checkpoint import load_into
from musicrl.closest import closest
from musicrl.policies.folder import licence, locate, read_json, read_tensors
from musicrl.rewards.text import SILENCE_DBFS
from musicrl.types import Clips, Prompt

AESTHETICS = "aesthetics"
AESTHETICS_RANGE = (1.0, 10.0)
"""Marks are 1 to 10 (section 3 of its paper)."""
AXES = ("CE", "CU", "PC", "PQ")
"""Content enjoyment, content usefulness, production complexity, production quality."""
SAMPLE_RATE, WINDOW_SECONDS = 16_000, 10
"""Hz and s: what the network was trained on."""
EXTRA = "the reward 'aesthetics' needs the extra: pip install 'musicrl[aesthetics]'"
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AestheticsConfig:
    """The model of the reward `aesthetics`, and what it is asked."""

    model: str = "hub:facebook/audiobox-aesthetics"
    """hub:ID, or path:DIR."""
    axes: Mapping[str, float] = field(default_factory=lambda: {"PQ": 1.0})
    """Share of each axis in the score: CE (enjoyment), CU (usefulness), PC (complexity), PQ
    (production quality); the score is their weighted mean. The default is the axis nearest to the
    paper's acoustic quality."""
    downloads: bool = False
    """Fetch the model when it is not in the Hub's local cache."""

    def __post_init__(self) -> None:
        for name, share in self.axes.items():
            if name not in AXES:
                raise ValueError(f"unknown axis {name!r} of aesthetics{closest(name, AXES)}")
            if not (math.isfinite(share) and share >= 0):
                raise ValueError(f"the share of axis {name!r} must be 0 or more, got {share}")
        if not sum(self.axes.values()):
            raise ValueError("aesthetics.axes: at least one axis needs a share above 0")

    def with_absolute_paths(self) -> AestheticsConfig:
        """The same for a process that may have another working directory."""
        if self.model.startswith("hub:"):
            return self
        return replace(self, model=f"path:{Path(self.model.removeprefix('path:')).absolute()}")


class Network(Protocol):
    """What the package's model is asked: a module of this signature."""

    target_transform: Mapping[str, Mapping[str, float]]
    """`mean` and `std` of the marks of each axis."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`wav` float32 and `mask` bool [B, 1, N] to standardised marks [B] of each axis."""
        ...


Build = Callable[[Mapping[str, Any]], nn.Module]
"""A network of random weights from what config.json holds."""


class Aesthetics:
    """Weighted mean of the axes' marks; each is the mean over consecutive windows of 10 s, by the
    time that they hold of the clip, as the package's own predictor has it. Silent or non-finite
    clips get NaN."""

    name = AESTHETICS

    def __init__(self, network: nn.Module, axes: Mapping[str, float], *, batch: int = 16) -> None:
        self._network = network.eval().requires_grad_(False)
        self._axes = dict(axes)
        self._batch = batch
        """Windows that are heard at a time."""
        self._device = torch.device("cpu")

    def move(self, device: torch.device) -> None:
        self._network.to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B] for audio [B, N] at any sample rate."""
        audio = resample(clips.audio, clips.sample_rate, SAMPLE_RATE)
        scores = np.full(len(prompts), np.nan, np.float32)
        (heard,) = np.nonzero(np.isfinite(audio).all(1) & (loudness(audio) > SILENCE_DBFS))
        if len(heard):
            scores[heard] = self._marks(audio[heard])
        return scores

    def _marks(self, audio: NDArray[np.float32]) -> NDArray[np.float64]:
        wavs, masks, shares = windows(torch.from_numpy(audio), SAMPLE_RATE * WINDOW_SECONDS)
        B, W, N = wavs.shape
        parts = zip(
            wavs.view(B * W, 1, N).split(self._batch),
            masks.expand(B, W, N).reshape(B * W, 1, N).split(self._batch),
            strict=True,
        )
        marks = torch.cat([self._hear(wav, mask) for wav, mask in parts]).view(B, W)
        found: NDArray[np.float64] = ((marks * shares).sum(1) / shares.sum()).numpy()
        return found

    def _hear(self, wav: Tensor, mask: Tensor) -> Tensor:
        """Marks float64 [M] of windows [M, 1, N]."""
        network = cast(Network, self._network)
        found = network({"wav": wav.to(self._device), "mask": mask.to(self._device)})
        scales = network.target_transform
        total = torch.zeros(len(wav), dtype=torch.float64)
        for axis, share in self._axes.items():
            standard = found[axis].double().cpu().view(-1)
            total += share * (standard * scales[axis]["std"] + scales[axis]["mean"])
        return total / sum(self._axes.values())


def windows(audio: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Audio [B, N] as consecutive windows [B, W, size], padded with zeros; which samples are the
    clip's, bool [W, size]; and the share of each window that is, float64 [W]."""
    B, N = audio.shape
    W = -(-N // size)
    padded = nn.functional.pad(audio, (0, W * size - N)).view(B, W, size)
    mask = (torch.arange(W * size) < N).view(W, size)
    return padded, mask, mask.double().mean(1)


def load_aesthetics(config: AestheticsConfig, build: Build | None = None) -> Aesthetics:
    """The reward of a configuration; `build` makes the network (none: the package's).

    Raises FileNotFoundError or ValueError naming the file, the tensor or what is not installed.
    """
    folder = locate(config.model, downloads=config.downloads)
    LOG.warning("weights of %s: licence %s", config.model, licence(folder))
    return Aesthetics(read_network(folder, build or _package()), config.axes)


def read_network(folder: Path, build: Build) -> nn.Module:
    """The network of a folder. Raises as `load_aesthetics`."""
    values = read_json(folder / "config.json")
    if values.get("target_transform", {}).keys() != set(AXES):
        raise ValueError(f"{folder / 'config.json'} has no 'target_transform' of {', '.join(AXES)}")
    try:
        network = build(values)
    except TypeError as fault:
        raise ValueError(f"{folder / 'config.json'}: {fault}") from fault
    load_into(network, read_tensors(folder), origin=folder)
    return network


def _package() -> Build:
    try:
        from audiobox_aesthetics.model.aes import AesMultiOutput
    except ImportError as fault:
        raise ValueError(EXTRA) from fault

    def build(values: Mapping[str, Any]) -> nn.Module:
        """In float32: the package's own bfloat16 is a GPU's."""
        network: nn.Module = AesMultiOutput(**{**values, "precision": "32"})
        return network

    return build
