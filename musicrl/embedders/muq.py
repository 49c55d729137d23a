"""MuQ-MuLan (Zhu et al. 2025) behind the joint-embedding protocol.

    folder/config.json, model.safetensors     sizes; the tensors of both towers
    audio_model.name, text_model.name         folders of the MuQ's config.json and of XLM-RoBERTa's
                                              config.json and tokeniser: inside, or in the Hub's cache

It needs transformers and no package `muq`. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.audio import split_windows
from musicrl.checkpoint import load_into
from musicrl.embedders.muq_layers import Muq, Transformer
from musicrl.policies.folder import blaming, check_tensors, locate, read_json, read_tensors
from musicrl.policies.pretrained import load_tokenizer

EXTRA = "MuQ-MuLan needs the extra: pip install 'musicrl[musicgen]'"
PREFIX = "mulan."
POSITIONS = "inv_freq"
"""A table that is computed, whether a file holds it or not."""


class AudioTower(nn.Module):
    """A layer's states of a MuQ, mixed and averaged."""

    def __init__(self, values: Mapping[str, Any], muq: Mapping[str, Any]) -> None:
        """`values`, `muq`: config.json of the MuQ-MuLan and of its MuQ."""
        super().__init__()
        model, mixer = values["audio_model"], values["audio_transformer"]
        self.layer = int(model["use_layer_idx"])
        self.model = nn.ModuleDict({"model": Muq(muq, sample_rate=values["mulan"]["sr"])})
        self.proj = nn.Linear(model["model_dim"], mixer["dim"])
        self.transformer = Transformer(mixer)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio [B, N] to [B, W]."""
        states = self.model["model"](audio)[self.layer]
        mixed: Tensor = self.transformer(self.proj(states)).mean(1)
        return mixed


class TextTower(nn.Module):
    """States of XLM-RoBERTa, mixed and averaged."""

    def __init__(self, values: Mapping[str, Any], words: Any) -> None:
        """`values`: config.json of the MuQ-MuLan; `words`: the configuration of its XLM-RoBERTa."""
        super().__init__()
        from transformers import XLMRobertaModel

        width, mixer = values["text_model"]["model_dim"], values["text_transformer"]
        is_projected = width not in (None, mixer["dim"])
        self.model = XLMRobertaModel(words, add_pooling_layer=False)
        self.proj = nn.Linear(width, mixer["dim"]) if is_projected else nn.Identity()
        self.transformer = Transformer(mixer)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids int64 [B, L], without padding, to [B, W]."""
        states = self.model(input_ids=ids).last_hidden_state
        mixed: Tensor = self.transformer(self.proj(states)).mean(1)
        return mixed


class Towers(nn.Module):
    """Both towers and their projections, with the checkpoint's names."""

    def __init__(self, values: Mapping[str, Any], muq: Mapping[str, Any], words: Any) -> None:
        """As the towers take them."""
        super().__init__()
        size = values["mulan"]["dim_latent"]
        self.audio, self.text = AudioTower(values, muq), TextTower(values, words)
        self.audio_to_latents = nn.Linear(values["audio_transformer"]["dim"], size)
        self.text_to_latents = nn.Linear(values["text_transformer"]["dim"], size)

    def hear(self, audio: Tensor) -> Tensor:
        """Audio [B, N] to float32 [B, D], unit length."""
        return F.normalize(self.audio_to_latents(self.audio(audio)), dim=-1)

    def read(self, ids: Tensor) -> Tensor:
        """Token ids int64 [B, L], without padding, to float32 [B, D], unit length."""
        return F.normalize(self.text_to_latents(self.text(ids)), dim=-1)


class MuqMulan:
    """A pretrained joint embedding, in evaluation mode."""

    def __init__(self, towers: Towers, tokenizer: Any, *, sample_rate: int, seconds: float) -> None:
        self.towers = towers.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.window_seconds = seconds

    @classmethod
    def from_folder(cls, folder: Path, *, downloads: bool = False) -> MuqMulan:
        """The model of a folder. `downloads` lets the configurations that it names be fetched.

        Raises FileNotFoundError or ValueError naming the file, the tensor or the reference at
        fault, and ValueError without transformers.
        """
        try:
            from transformers import XLMRobertaConfig
        except ImportError as fault:
            raise ValueError(EXTRA) from fault
        path = folder / "config.json"
        values = read_json(path)
        with blaming(path):
            names = [values[part]["name"] for part in ("audio_model", "text_model")]
        sound, words = (_part(folder, name, downloads=downloads) for name in names)
        muq, text = read_json(sound / "config.json"), read_json(words / "config.json")
        with blaming(words / "config.json"):
            config = XLMRobertaConfig.from_dict(text)
            if text.get("model_type") != XLMRobertaConfig.model_type:
                raise ValueError(f"model_type is {text.get('model_type')!r}, not 'xlm-roberta'")
        with blaming(path):
            towers = Towers(values, muq, config)
            rate, seconds = int(values["mulan"]["sr"]), float(values["mulan"]["clip_secs"])
        _fill(towers, folder)
        return cls(towers, load_tokenizer(words), sample_rate=rate, seconds=seconds)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, D], unit length; longer texts than XLM-RoBERTa reads are cut. Texts are read
        one by one: padding would change what the mean over positions is."""
        found = self.tokenizer(list(texts), truncation=True, max_length=self._text_size)
        device = self.towers.text_to_latents.weight.device
        rows = [torch.tensor([ids], device=device) for ids in found["input_ids"]]
        return torch.cat([self.towers.read(ids) for ids in rows])

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, window samples] to float32 [B, D], unit length."""
        return self.towers.hear(audio.to(self.towers.audio_to_latents.weight.device))

    def embed_clip(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N] to float32 [B, D]: the mean over consecutive windows, at unit
        length. (The package wraps the last window around to the clip's beginning.)"""
        windows = split_windows(audio.numpy(), round(self.window_seconds * self.sample_rate))
        sounds = self.embed_audio(torch.from_numpy(windows).flatten(0, 1))
        return F.normalize(sounds.view(len(audio), windows.shape[1], -1).mean(1), dim=-1)

    def move(self, device: torch.device) -> None:
        self.towers.to(device)

    @property
    def _text_size(self) -> int:
        """Tokens; positions begin after the padding token's."""
        config = self.towers.text.model.config
        return int(config.max_position_embeddings - config.pad_token_id - 1)


def _part(folder: Path, name: str, *, downloads: bool) -> Path:
    """Where the configuration of a part is: inside the folder, under the name's last word, or on
    the Hub."""
    inside = folder / name.rsplit("/", 1)[-1]
    return inside if inside.is_dir() else locate(f"hub:{name}", downloads=downloads)


def _fill(towers: Towers, folder: Path) -> None:
    own = towers.state_dict()
    computed = {name: tensor for name, tensor in own.items() if name.endswith(POSITIONS)}
    wanted = {f"{PREFIX}{name}": own[name] for name in own.keys() - computed.keys()}
    tensors = read_tensors(folder, prefix=PREFIX)
    check_tensors(folder, tensors, wanted)
    found = {name.removeprefix(PREFIX): tensors[name] for name in wanted}
    load_into(towers, {**found, **computed}, origin=folder)
