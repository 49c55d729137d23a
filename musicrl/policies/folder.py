"""A model's folder in the Hub's form: where it is, what it says of itself, and its tensors.

    config.json   model.safetensors or its shards with an index   README.md with front matter

It knows no family. Nothing is downloaded unless the caller says so, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLE = (
    ": pytorch_model.bin is a pickle and is not read; outside of musicrl, transformers' save_pretrained, "
    "or torch.load(..., weights_only=True) and safetensors.torch.save_file, make safetensors of it"
)
ASK = "`hf download {}` or the setting `downloads` fetches it"
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "README.md"]


def locate(reference: str, *, downloads: bool = False) -> Path:
    """The folder of `path:DIR`, of a plain folder, or of `hub:ID` in the Hub's local cache;
    `downloads` lets a model that is not there be fetched.

    Raises ValueError naming the reference.
    """
    if reference.startswith("hub:"):
        return _from_hub(reference.removeprefix("hub:"), downloads=downloads)
    folder = Path(reference.removeprefix("path:"))
    if not folder.is_dir():
        raise ValueError(f"{reference}: no such folder")
    return folder


def _from_hub(name: str, *, downloads: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as fault:
        raise ValueError(f"hub:{name} needs the extra: pip install 'musicrl[musicgen]'") from fault
    try:
        found = snapshot_download(name, allow_patterns=PATTERNS, local_files_only=not downloads)
    except LocalEntryNotFoundError as fault:
        why = (
            "the Hub cannot be reached, or HF_HUB_OFFLINE is set" if downloads else ASK.format(name)
        )
        raise ValueError(
            f"hub:{name} is not in the local cache and was not fetched: {why}"
        ) from fault
    except (HFValidationError, HfHubHTTPError) as fault:
        raise ValueError(f"hub:{name} cannot be fetched: {fault}") from fault
    return Path(found)


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Whatever goes wrong with what a file says, here or in another library, as a ValueError that
    names the file."""
    try:
        yield
    except KeyError as fault:
        raise ValueError(f"{path} lacks the setting {fault}") from fault
    except Exception as fault:
        raise ValueError(f"{path}: {fault}") from fault


def read_json(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        values = json.loads(path.read_text())
    except ValueError as fault:
        raise ValueError(f"{path} is not readable JSON: {fault}") from fault
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")  # noqa: TRY004 - a fault of the file
    return values


def read_tensors(folder: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a folder whose names begin so, in float32 or their own integers, on the CPU.

    Raises FileNotFoundError naming a missing file, and ValueError naming a damaged one or the
    tensor that the index promises and a shard lacks.
    """
    index = _read_index(folder)
    if index is None:
        return read_file(folder / WEIGHTS, prefix)
    places = {tensor: shard for tensor, shard in index.items() if tensor.startswith(prefix)}
    shards = {name: read_file(folder / name, prefix) for name in sorted(set(places.values()))}
    for tensor, shard in places.items():
        if tensor not in shards[shard]:
            raise ValueError(f"{folder / shard} lacks the tensor {tensor!r}")
    return {tensor: shards[shard][tensor] for tensor, shard in places.items()}


def check_tensors(
    folder: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Raise ValueError naming the file and the first of a folder's `tensors` that is missing, or that
    has another shape or other kinds of numbers than the `wanted` one."""
    for name, own in wanted.items():
        file = file_of(folder, name)
        if name not in tensors:
            raise ValueError(f"{file} lacks the tensor {name!r}")
        found = tensors[name]
        if found.shape != own.shape:
            shapes = f"{tuple(found.shape)}, expected {tuple(own.shape)}"
            raise ValueError(f"{file}: tensor {name!r} has shape {shapes}")
        if found.is_floating_point() != own.is_floating_point():
            raise ValueError(f"{file}: tensor {name!r} is {found.dtype}, expected {own.dtype}")


def file_of(folder: Path, tensor: str) -> Path:
    """The file that holds a tensor of a folder: of shards the one that the index names, or the index
    where it names none."""
    index = _read_index(folder)
    return folder / (WEIGHTS if index is None else index.get(tensor, INDEX))


def files_of(folder: Path) -> list[Path]:
    """The files that hold a folder's tensors, each of them readable.

    Raises FileNotFoundError or ValueError naming the file that is missing or damaged.
    """
    index = _read_index(folder)
    names = [WEIGHTS] if index is None else sorted(set(index.values()))
    for name in names:
        read_file(folder / name, prefix="\0")  # no tensor is called so: only the header is read
    return [folder / name for name in names]


def _read_index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor; None where there is no index."""
    path = folder / INDEX
    if not path.is_file():
        return None
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"{path} has no 'weight_map' of tensors to files")
    return found


def read_file(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """As `read_tensors`, of one file."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}{PICKLE if _has_pickle(path) else ''}")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as fault:
        raise ValueError(f"{path} is not a readable safetensors file: {fault}") from fault
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _has_pickle(path: Path) -> bool:
    return (path.parent / "pytorch_model.bin").is_file()


def licence(folder: Path) -> str:
    """As the front matter of the folder's README.md states it; "unknown" where it states none.

    Raises ValueError naming the file when its front matter is no YAML.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return "unknown"
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError as fault:
        raise ValueError(f"{card}: its front matter is not readable YAML") from fault
    stated = front.get("license", "unknown") if isinstance(front, dict) else "unknown"
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
