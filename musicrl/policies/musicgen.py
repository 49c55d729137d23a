"""A whole `MusicgenForConditionalGeneration` checkpoint as a policy: text encoder and decoder.

Its codec is not read here. transformers makes the text encoder and the tokeniser, and is needed for
nothing else; the decoder is `DelayedLM`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from musicrl.checkpoint import load_into, load_tensors, save_tensors
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.folder import (
    blaming,
    check_tensors,
    licence,
    locate,
    read_json,
    read_tensors,
)
from musicrl.policies.huggingface import from_musicgen, to_musicgen
from musicrl.policies.peft import CONFIG as ADAPTER
from musicrl.policies.peft import merge_adapter
from musicrl.policies.pretrained import load_tokenizer
from musicrl.policies.text import TextStates, pad

KIND = "MusicGen policy"
LOG = logging.getLogger(__name__)
EXTRA = "MusicGen needs the extra: pip install 'musicrl[musicgen]'"
TEXT, DECODER, PROJECTION = "text_encoder.", "decoder.", "enc_to_dec_proj"
TIED = (f"{TEXT}shared.weight", f"{TEXT}encoder.embed_tokens.weight")
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MusicGen:
    """A checkpoint as it was loaded."""

    policy: DelayedLM
    folder: Path
    licence: str
    """Of the weights, as their card states it."""

    @classmethod
    def load(
        cls,
        reference: str,
        *,
        num_steps: int = 1503,
        text_size: int = 64,
        downloads: bool = False,
    ) -> MusicGen:
        """The checkpoint of `path:DIR`, a plain folder or `hub:ID`, for clips of up to `num_steps`
        steps and texts of up to `text_size` tokens. Logs the licence of the weights.

        Raises FileNotFoundError or ValueError naming the file, the tensor or the setting at fault,
        and ValueError without transformers.
        """
        folder = locate(reference, downloads=downloads)
        values = read_json(folder / "config.json")
        with blaming(folder / "config.json"):
            config = read_config(values, num_steps=num_steps, text_size=text_size)
        found = licence(folder)
        LOG.warning("weights of %s: licence %s", reference, found)
        policy = _policy(read_tensors(folder), values, config, folder)
        return cls(policy=policy, folder=folder, licence=found)

    def save_policy(self, path: Path) -> None:
        """Write what learns, whole or not at all: the decoder and the projection of text states."""
        tensors = self.policy.state_dict()
        save_tensors(path, tensors, kind=KIND, config=self.policy.config_dict)

    def load_policy(self, path: Path) -> None:
        """Take what `save_policy` wrote of a checkpoint of this shape, or merge the adapters of a
        folder of `peft`'s form.

        Raises FileNotFoundError, or ValueError naming the file and what does not fit.
        """
        if (path / ADAPTER).is_file():
            return self._merge(path)
        tensors, _ = load_tensors(path, kind=KIND)
        load_into(self.policy, tensors, origin=path)

    def _merge(self, folder: Path) -> None:
        own, config = self.policy.state_dict(), self.policy.config
        merged = merge_adapter(to_checkpoint(own, config), folder)
        load_into(self.policy, from_checkpoint(merged, config), origin=folder)

    def conditioner(self, texts: Sequence[str]) -> Tensor:
        """Conditions int64 [P, C] of texts, by the folder's tokeniser; longer ones are cut."""
        ids = cast(list[list[int]], self.tokenizer(list(texts)).input_ids)
        return pad(ids, self.policy.config.condition_levels)

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's. Raises FileNotFoundError or ValueError naming the folder."""
        return load_tokenizer(self.folder)


def read_config(values: Values, *, num_steps: int, text_size: int) -> DelayedConfig:
    """The decoder's shape from what config.json holds.

    Raises ValueError naming the setting that is not served.
    """
    check_family(values)
    text, decoder = (_part(values, name) for name in ("text_encoder", "decoder"))
    if text.get("model_type") != "t5":
        raise ValueError(f"text_encoder.model_type is {text.get('model_type')!r}, not 't5'")
    _check_decoder(decoder)
    limit = np.iinfo(np.int16).max
    if text["vocab_size"] > limit:
        raise ValueError(f"text_encoder.vocab_size {text['vocab_size']} is above {limit}")
    return DelayedConfig(
        vocab=decoder["vocab_size"],
        num_codebooks=decoder["num_codebooks"],
        channels=decoder.get("audio_channels", 1),
        num_steps=num_steps,
        condition_levels=text_size,
        condition_vocab=text["vocab_size"],
        width=decoder["hidden_size"],
        num_layers=decoder["num_hidden_layers"],
        num_heads=decoder["num_attention_heads"],
        num_kv_heads=decoder["num_attention_heads"],
        mlp_width=decoder["ffn_dim"],
    )


def check_family(values: Values) -> None:
    """Raise ValueError unless a config.json is that of a text-conditioned MusicGen."""
    kind = values.get("model_type")
    if kind == "musicgen_melody":
        raise ValueError("a melody-conditioned MusicGen is not served, only text-conditioned ones")
    if kind != "musicgen":
        raise ValueError(f"model_type is {kind!r}, not 'musicgen'")


def _part(values: Values, name: str) -> Values:
    part = values.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"it lacks {name!r}")  # noqa: TRY004 - a fault of the file
    return part


def _check_decoder(decoder: Values) -> None:
    """Settings that MusicGen's own checkpoints all have, and the delayed decoder takes for granted."""
    vocab = decoder.get("vocab_size")
    wanted = {
        "activation_function": "gelu",
        "scale_embedding": False,
        "pad_token_id": vocab,
        "cross_attention_hidden_size": None,
    }
    for name, value in wanted.items():
        if decoder.get(name, value) != value:
            raise ValueError(f"decoder.{name} is {decoder[name]!r}, expected {value!r}")


def _policy(
    tensors: dict[str, Tensor], values: Values, config: DelayedConfig, folder: Path
) -> DelayedLM:
    text = values["text_encoder"]
    with blaming(folder / "config.json"):
        text_width = int(text["d_model"])
    check_tensors(folder, tensors, decoder_tensors(config, text_width))
    states = TextStates(
        _text_encoder(tensors, text, folder), text_width=text_width, width=config.width
    )
    policy = DelayedLM(config, states)
    load_into(policy, from_checkpoint(tensors, config), origin=folder)
    return policy


def from_checkpoint(tensors: Mapping[str, Tensor], config: DelayedConfig) -> dict[str, Tensor]:
    """What learns, under the policy's names, of a whole checkpoint's tensors."""
    own = from_musicgen({k.removeprefix(DECODER): v for k, v in tensors.items()}, config)
    del own["condition.weight"]
    return own | _renamed(tensors, PROJECTION, "text.projection")


def to_checkpoint(own: Mapping[str, Tensor], config: DelayedConfig) -> dict[str, Tensor]:
    """The inverse of `from_checkpoint`, of what learns alone."""
    found = {f"{DECODER}{k}": v for k, v in to_musicgen(own, config).items()}
    return found | _renamed(own, "text.projection", PROJECTION)


def _renamed(tensors: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Those of a linear layer, if it is there, under its other name."""
    return {
        f"{new}.{k}": tensors[f"{old}.{k}"] for k in ("weight", "bias") if f"{old}.{k}" in tensors
    }


def decoder_tensors(config: DelayedConfig, text_width: int) -> dict[str, Tensor]:
    """What a checkpoint of this shape holds of what learns, without numbers."""
    with torch.device("meta"):
        states = TextStates(nn.Identity(), text_width=text_width, width=config.width)
        return to_checkpoint(DelayedLM(config, states).state_dict(), config)


def _text_encoder(tensors: Mapping[str, Tensor], values: Values, folder: Path) -> nn.Module:
    transformers = _transformers()
    with blaming(folder / "config.json"):
        encoder: nn.Module = transformers.T5EncoderModel(
            transformers.T5Config.from_dict(dict(values))
        )
    own = {k: v for k, v in tensors.items() if k.startswith(TEXT)}
    for one, other in (TIED, TIED[::-1]):
        if one not in own and other in own:
            own[one] = own[other]
    check_tensors(folder, own, {f"{TEXT}{k}": v for k, v in encoder.state_dict().items()})
    found = {k.removeprefix(TEXT): v for k, v in own.items()}
    load_into(encoder, found, origin=f"{folder}, {TEXT.rstrip('.')}")
    return encoder


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as fault:
        raise ValueError(EXTRA) from fault
    return transformers
