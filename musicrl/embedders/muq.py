"""MuQ-MuLan (Zhu et al. 2025, arXiv 2501.01108) behind the joint-embedding protocol.

The network is its authors' (package muq, the extra `muq`). It consists of three checkpoints in the
Hub's form: its own, and those of the encoders that its config.json names. Nothing is downloaded
unless told, and nothing is unpickled: where a checkpoint has no model.safetensors, it is to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.audio import split_windows
from musicrl.checkpoint import load_into
from musicrl.policies.folder import INDEX, WEIGHTS, locate, read_json, read_tensors

EXTRA = "MuQ-MuLan needs the extra: pip install 'musicrl[muq]'"
ENCODERS = ("audio_model", "text_model")
"""Parts of config.json, each with the `name` of a checkpoint."""
Build = Callable[[Mapping[str, Any]], nn.Module]
"""A network from what config.json holds, its encoders named by their folders."""


class MuQMuLan:
    """A pretrained joint embedding, in evaluation mode."""

    def __init__(self, network: nn.Module, *, sample_rate: int, window_seconds: float) -> None:
        """`network(wavs=)` and `network(texts=)` give rows of unit length."""
        self._network = network.eval().requires_grad_(False)
        self.sample_rate = sample_rate
        self.window_seconds = window_seconds
        self._device = torch.device("cpu")

    @classmethod
    def from_folder(
        cls, folder: Path, *, downloads: bool = False, build: Build | None = None
    ) -> MuQMuLan:
        """The model of a folder; encoders lie in folders inside it, by the names of config.json, or
        in the Hub's local cache. `build` makes the network (none: the package's).

        Raises FileNotFoundError or ValueError naming the file, the tensor or what is missing.
        """
        values = read_json(folder / "config.json")
        if not reads(values):
            raise ValueError(f"{folder / 'config.json'} is of no MuQ-MuLan")
        if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
            raise FileNotFoundError(
                f"{folder} holds no {WEIGHTS}: a pytorch_model.bin is a pickle, and is not read; "
                "save its tensors with safetensors"
            )
        named = {
            part: {**values[part], "name": str(_encoder(folder, values[part]["name"], downloads))}
            for part in ENCODERS
        }
        network = (build or _package())({**values, **named})
        load_into(network, read_tensors(folder), origin=folder)
        mulan = values["mulan"]
        return cls(network, sample_rate=int(mulan["sr"]), window_seconds=float(mulan["clip_secs"]))

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, D], unit length. One at a time: the network averages over padding too, so
        that a text's embedding would depend on the others."""
        rows = [self._network(texts=[text]) for text in texts]
        return F.normalize(torch.cat(rows).float(), dim=-1)

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, window samples], on the CPU, to float32 [B, D], unit length."""
        found: Tensor = self._network(wavs=audio.to(self._device))
        return F.normalize(found.float(), dim=-1)

    def embed_clip(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N] to float32 [B, D]: the mean over windows, at unit length."""
        parts = split_windows(audio.numpy(), round(self.window_seconds * self.sample_rate))
        sounds = self.embed_audio(torch.from_numpy(parts).flatten(0, 1))
        return F.normalize(sounds.view(len(audio), parts.shape[1], -1).mean(1), dim=-1)

    def move(self, device: torch.device) -> None:
        self._network.to(device)
        self._device = device


def reads(values: Mapping[str, Any]) -> bool:
    """Whether a config.json that holds `values` is a MuQ-MuLan's."""
    is_named = all(isinstance(values.get(part), dict) for part in ("mulan", *ENCODERS))
    return is_named and all("name" in values[part] for part in ENCODERS)


def _encoder(folder: Path, name: str, downloads: bool) -> Path:
    own = folder / name
    return own if own.is_dir() else locate(f"hub:{name}", downloads=downloads)


def _package() -> Build:
    try:
        from muq import MuQMuLan as Network
    except ImportError as fault:
        raise ValueError(EXTRA) from fault

    def build(values: Mapping[str, Any]) -> nn.Module:
        network: nn.Module = Network(dict(values))
        return network

    return build
