"""EnCodec and DAC, as transformers has them, behind the codec protocol.

Mono models of one chunk whose codes are not scaled: what MusicGen's EnCodec and DAC are. Weights come
from a folder in the Hub's form; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicrl.checkpoint import load_into
from musicrl.policies.folder import blaming, check_tensors, read_json, read_tensors
from musicrl.policies.pretrained import load_model

EXTRA = "EnCodec and DAC need the extra: pip install 'musicrl[musicgen]'"
AUDIO = "audio_encoder."
NORMED = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}
"""Names of older checkpoints, such as MusicGen's own, and of today."""
CLASSES = {"encodec": "EncodecModel", "dac": "DacModel"}


class HuggingFaceCodec:
    """A pretrained codec, in evaluation mode."""

    def __init__(self, model: Any) -> None:
        """Raises ValueError for a model that this does not serve."""
        config = model.config
        if config.model_type not in CLASSES:
            raise ValueError(f"a codec {config.model_type!r} is not served: {', '.join(CLASSES)}")
        self._is_encodec = config.model_type == "encodec"
        if self._is_encodec:
            _check_encodec(config)
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_folder(cls, folder: Path) -> HuggingFaceCodec:
        """The codec of a folder. Raises ValueError naming the folder, and without transformers."""
        try:
            import transformers
        except ImportError as fault:
            raise ValueError(EXTRA) from fault
        try:
            kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind not in CLASSES:
                raise ValueError(f"a codec {kind!r} is not served: {', '.join(CLASSES)}")
            return cls(load_model(getattr(transformers, CLASSES[kind]), folder))
        except (OSError, ValueError) as fault:
            raise ValueError(f"{folder} holds no codec that can be read: {fault}") from fault

    @classmethod
    def from_musicgen(cls, folder: Path) -> HuggingFaceCodec:
        """The codec inside a whole MusicGen checkpoint. Raises FileNotFoundError or ValueError
        naming the folder, and without transformers."""
        try:
            from transformers import AutoModel, EncodecConfig
        except ImportError as fault:
            raise ValueError(EXTRA) from fault
        values = read_json(folder / "config.json").get("audio_encoder")
        if not isinstance(values, dict) or values.get("model_type") != "encodec":
            raise ValueError(f"{folder / 'config.json'}: audio_encoder is no 'encodec'")
        with blaming(folder / "config.json"):
            codec = cls(AutoModel.from_config(EncodecConfig.from_dict(values)))
        tensors = {_todays(k): v for k, v in read_tensors(folder, prefix=AUDIO).items()}
        wanted = {f"{AUDIO}{k}": v for k, v in codec.model.state_dict().items()}
        check_tensors(folder, tensors, wanted)
        found = {k.removeprefix(AUDIO): v for k, v in tensors.items()}
        load_into(codec.model, found, origin=f"{folder}, {AUDIO.rstrip('.')}")
        return codec

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.model.config.sampling_rate)

    @property
    def frame_size(self) -> int:
        """Samples of one frame of codes."""
        return int(self.model.config.hop_length)

    @property
    def frame_rate(self) -> float:
        """Frames per second of the codes."""
        return self.sample_rate / self.frame_size

    @property
    def num_codebooks(self) -> int:
        config = self.model.config
        return int(config.num_quantizers if self._is_encodec else config.n_codebooks)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.codebook_size)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = self.model.device
        return found

    def to(self, device: torch.device) -> object:
        """Move it, in place."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio float32 [B, N], N a positive multiple of `frame_size`, to codes int64 [B, Q, T].

        Raises ValueError for another N.
        """
        N = audio.shape[1]
        if N == 0 or N % self.frame_size:
            raise ValueError(f"audio of {N} samples is not a multiple of {self.frame_size}")
        found = self.model.encode(audio[:, None].to(self.device), **self._at_full_rate())
        codes: Tensor = found.audio_codes[0] if self._is_encodec else found.audio_codes
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, Q', T] of the first Q' <= Q levels to audio float32 [B, N]."""
        size = codes.shape[2] * self.frame_size
        if self._is_encodec:
            audio: Tensor = self.model.decode(codes[None], [None]).audio_values[:, 0]
        else:
            audio = self.model.decode(audio_codes=codes).audio_values
        return audio[:, :size].clamp(-1, 1)

    @property
    def channels(self) -> int:
        return 1

    def decode_channels(self, codes: Tensor) -> Tensor:
        """As `decode`, to audio float32 [B, 1, N]."""
        return self.decode(codes)[:, None]

    def _at_full_rate(self) -> dict[str, float]:
        return {"bandwidth": max(self.model.config.target_bandwidths)} if self._is_encodec else {}


def _todays(name: str) -> str:
    """A tensor's name under torch's weight normalisation of today."""
    for old, new in NORMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _check_encodec(config: Any) -> None:
    for name, value in {"audio_channels": 1, "normalize": False, "chunk_length_s": None}.items():
        if getattr(config, name) != value:
            raise ValueError(f"an EnCodec with {name} {getattr(config, name)!r} is not served")
