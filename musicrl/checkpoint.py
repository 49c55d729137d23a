"""Files of tensors: safetensors with a JSON configuration, written atomically, read strictly.

Every model of this project is one such file. Nothing here unpickles.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = "musicrl/1"


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, kind: str, config: Mapping[str, Any]
) -> None:
    """Write `tensors` with their `kind` and `config` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    metadata = {"format": FORMAT, "kind": kind, "config": json.dumps(config, sort_keys=True)}
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(dense, partial, metadata=metadata)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_tensors(path: Path, *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration of a file of `kind`; half precision is widened to float32.

    Raises FileNotFoundError when it is missing and ValueError when it is truncated, of another
    format or of another kind.
    """
    if not path.is_file():
        inside = sorted(path.glob(f"checkpoints/step_*/{kind}.safetensors"))
        hint = f", which is a run: name one of its files, such as {inside[-1]}" if inside else ""
        raise FileNotFoundError(f"no {kind} weights at {path}{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: _widen(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as fault:
        raise ValueError(f"{path} is not a readable safetensors file: {fault}") from fault
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        found = metadata.get("kind", "unknown")
        raise ValueError(f"{path} holds {found!r} weights, not {kind!r}")
    return tensors, json.loads(metadata["config"])


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, origin: Path | str) -> None:
    """Copy `tensors` into `module`, every name and shape equal.

    Raises ValueError naming `origin` and the first tensor that is missing, unknown or misshapen.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise ValueError(f"{origin} lacks the tensor {name!r}")
        if tensors[name].shape != tensor.shape:
            found, wanted = tuple(tensors[name].shape), tuple(tensor.shape)
            raise ValueError(f"{origin}: tensor {name!r} has shape {found}, expected {wanted}")
    for name in tensors:
        if name not in own:
            raise ValueError(f"{origin} holds an unknown tensor {name!r}")
    module.load_state_dict(dict(tensors))


def half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float tensors in half precision, as shipped."""
    return {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in tensors.items()}


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
