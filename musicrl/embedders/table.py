"""The table of pretrained joint embeddings: what a folder in the Hub's form is read by.

To add one: a file in this folder with a class behind `JointEmbedder`, and a line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from musicrl.embedders import muq
from musicrl.embedders.base import JointEmbedder
from musicrl.embedders.clap import Clap
from musicrl.embedders.muq import MuQMuLan
from musicrl.policies.folder import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderFamily:
    """How the models of one kind are read."""

    reads: Callable[[Mapping[str, Any]], bool]
    """Whether a config.json is of this kind."""
    load: Callable[[Path, bool], JointEmbedder]
    """From a folder; whether what else it needs may be downloaded."""


def _is_clap(values: Mapping[str, Any]) -> bool:
    return values.get("model_type") == "clap"


def _load_muq(folder: Path, downloads: bool) -> JointEmbedder:
    return MuQMuLan.from_folder(folder, downloads=downloads)


EMBEDDERS: Mapping[str, EmbedderFamily] = MappingProxyType(
    {
        "CLAP": EmbedderFamily(reads=_is_clap, load=lambda folder, _: Clap.from_folder(folder)),
        "MuQ-MuLan": EmbedderFamily(reads=muq.reads, load=_load_muq),
    }
)


def load_embedder(folder: Path, *, downloads: bool = False) -> JointEmbedder:
    """The joint embedding of a folder. Raises FileNotFoundError or ValueError naming the folder."""
    values = read_json(folder / "config.json")
    for family in EMBEDDERS.values():
        if family.reads(values):
            return family.load(folder, downloads)
    found = values.get("model_type", "unknown")
    raise ValueError(
        f"{folder} holds no {' or '.join(EMBEDDERS)} that can be read: model_type is {found!r}"
    )
