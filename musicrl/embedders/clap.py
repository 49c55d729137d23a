"""CLAP, as transformers has it, behind the joint-embedding protocol.

Weights, tokeniser and the settings of its spectrogram come from a folder in the Hub's form; nothing
is downloaded. Models that fuse longer clips draw random windows, and are not served.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musicrl.audio import split_windows
from musicrl.policies.pretrained import load_model, load_tokenizer

EXTRA = "CLAP needs the extra: pip install 'musicrl[musicgen]'"
LOG = logging.getLogger(__name__)


class Clap:
    """A pretrained joint embedding, in evaluation mode."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any) -> None:
        """Raises ValueError for a model that this does not serve."""
        if model.config.model_type != "clap":
            raise ValueError(f"model_type is {model.config.model_type!r}, not 'clap'")
        if model.config.audio_config.enable_fusion:
            raise ValueError("a CLAP with audio_config.enable_fusion is not served")
        self.model = model.eval().requires_grad_(False)
        self.extractor = extractor
        self.tokenizer = tokenizer
        self.sample_rate = int(extractor.sampling_rate)
        self.window_seconds = float(extractor.max_length_s)

    @classmethod
    def from_folder(cls, folder: Path) -> Clap:
        """The model of a folder. Raises ValueError naming the folder, and without transformers."""
        try:
            import transformers
        except ImportError as fault:
            raise ValueError(EXTRA) from fault
        try:
            kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind != "clap":
                raise ValueError(f"model_type is {kind!r}, not 'clap'")
            model = load_model(transformers.ClapModel, folder)
            extractor = transformers.ClapFeatureExtractor.from_pretrained(
                folder, local_files_only=True
            )
            return cls(model, extractor, load_tokenizer(folder))
        except (OSError, ValueError) as fault:
            raise ValueError(f"{folder} holds no CLAP that can be read: {fault}") from fault

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, D], unit length; longer texts than the model reads are cut."""
        found = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._text_size
        )
        ids, mask = (
            torch.tensor(found[name], device=self.model.device)
            for name in ("input_ids", "attention_mask")
        )
        states = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.model.text_projection(states), dim=-1)

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, window samples] to float32 [B, D], unit length."""
        features = self.extractor(
            list(audio.numpy()), truncation="rand_trunc", sampling_rate=self.sample_rate
        )["input_features"]
        mels = torch.stack([torch.as_tensor(mel, dtype=torch.float32) for mel in features])
        states = self.model.audio_model(input_features=mels.to(self.model.device)).pooler_output
        return F.normalize(self.model.audio_projection(states), dim=-1)

    def embed_clip(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N] to float32 [B, D]: the mean over consecutive windows, at unit
        length."""
        windows = split_windows(audio.numpy(), round(self.window_seconds * self.sample_rate))
        sounds = self.embed_audio(torch.from_numpy(windows).flatten(0, 1))
        return F.normalize(sounds.view(len(audio), windows.shape[1], -1).mean(1), dim=-1)

    def move(self, device: torch.device) -> None:
        self.model.to(device)

    @property
    def _text_size(self) -> int:
        """Tokens; RoBERTa's positions begin after its padding token's."""
        text = self.model.config.text_config
        return int(text.max_position_embeddings - text.pad_token_id - 1)
