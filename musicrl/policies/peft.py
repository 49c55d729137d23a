"""Adapters of a MusicGen in the form of `peft` (Mangrulkar et al. 2022), written and read.

    adapter_config.json         rank, alpha and the modules that are adapted
    adapter_model.safetensors   of each module lora_A [r, I] and lora_B [O, r]

The delayed decoder joins projections that MusicGen has apart: an adapter of `qkv` is one each of
q_proj, k_proj and v_proj that share lora_A. `peft` itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from musicrl.policies.folder import read_file, read_json
from musicrl.policies.lora import DOWN, UP, LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.out_proj",),
        "cross_query": ("encoder_attn.q_proj",),
        "cross_kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        "cross_out": ("encoder_attn.out_proj",),
        "up": ("fc1",),
        "down": ("fc2",),
    }
)
"""MusicGen's modules of each linear layer of the delayed decoder, in the order of their rows."""
PROJECTION = ("text.projection", "enc_to_dec_proj")
PLAIN: Mapping[str, object] = MappingProxyType(
    {
        "peft_type": "LORA",
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
        "lora_bias": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }
)
"""What a configuration says of adapters that are nothing but products of two matrices and one scale."""


def write_adapter(
    adapters: Mapping[str, Tensor], config: LoraConfig, folder: Path, *, base: str
) -> None:
    """Write adapters, as `lora.published` names them, into an existing folder; `base` is the id or
    the folder of the checkpoint that they are of, without `hub:` or `path:`."""
    tensors = to_peft(adapters)
    targets = [name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)]
    values = {
        **PLAIN,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "task_type": None,
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def to_peft(adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices `<layer>.up` [O, r] and `<layer>.down` [r, I] under peft's names."""
    found: dict[str, Tensor] = {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in adapters):
        up, down = (adapters[f"{layer}.{part}"].detach().cpu() for part in (UP, DOWN))
        modules = modules_of(layer)
        for module, rows in zip(modules, up.chunk(len(modules)), strict=True):
            found[f"{PREFIX}{module}{A}"] = down.clone()
            found[f"{PREFIX}{module}{B}"] = rows.clone()
    return found


def modules_of(layer: str) -> Sequence[str]:
    """MusicGen's modules that a linear layer of the delayed decoder is made of."""
    if layer == PROJECTION[0]:
        return PROJECTION[1:]
    place, _, part = layer.rpartition(".")
    return [f"decoder.model.decoder.{place}.{name}" for name in MODULES[part]]


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """What a folder's adapters add to the weights of MusicGen's modules: float32 [O, I] by the
    weight's name in the checkpoint.

    Raises FileNotFoundError, or ValueError naming the file, and the setting or the tensor at fault.
    """
    values, file = read_json(folder / CONFIG), folder / WEIGHTS
    for name, plain in PLAIN.items():
        found = values.get(name, plain)
        if found != plain and (found or plain):
            raise ValueError(f"{folder / CONFIG}: {name} {found!r} is not served, only {plain!r}")
    scale = _scale(folder / CONFIG, values)
    tensors = read_file(file)
    downs = [name for name in tensors if name.endswith(A)]
    for name in tensors:
        if not name.startswith(PREFIX) or not name.endswith((A, B)):
            raise ValueError(f"{file}: tensor {name!r} is no part of an adapter")
    return {
        f"{name.removeprefix(PREFIX).removesuffix(A)}.weight": scale * _product(file, tensors, name)
        for name in downs
    }


def _scale(path: Path, values: Mapping[str, Any]) -> float:
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(f"{path}: r {rank!r} and lora_alpha {alpha!r} are no rank and no scale")
    return alpha / rank


def _product(file: Path, tensors: Mapping[str, Tensor], down: str) -> Tensor:
    up = down.removesuffix(A) + B
    if up not in tensors:
        raise ValueError(f"{file} lacks the tensor {up!r}")
    shapes = tuple(tensors[up].shape), tuple(tensors[down].shape)
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][0]:
        raise ValueError(f"{file}: tensors {up!r} and {down!r} of {shapes[0]} and {shapes[1]}")
    return torch.matmul(tensors[up], tensors[down])


def merge_adapter(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors that learn, by their names there, with a folder's adapters merged.

    Raises as `read_adapter`, and ValueError naming a module that the checkpoint does not have.
    """
    merged = dict(state)
    for name, added in read_adapter(folder).items():
        if name not in merged:
            raise ValueError(f"{folder / WEIGHTS}: the decoder has no weight {name!r} to adapt")
        if merged[name].shape != added.shape:
            found, wanted = tuple(added.shape), tuple(merged[name].shape)
            raise ValueError(f"{folder / WEIGHTS}: adapters of {name!r} make {found}, not {wanted}")
        merged[name] = merged[name] + added.to(merged[name].device)
    return merged
