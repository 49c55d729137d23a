"""The pretrained joint embeddings that a folder of the Hub's form may hold, and which one it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from musicrl.embedders.base import JointEmbedder
from musicrl.embedders.clap import Clap
from musicrl.embedders.muq import MuqMulan
from musicrl.policies.folder import read_json

CLAP, MUQ_MULAN = "clap", "muq-mulan"
PRETRAINED: Mapping[str, Callable[[Path, bool], JointEmbedder]] = MappingProxyType(
    {
        CLAP: lambda folder, _: Clap.from_folder(folder),
        MUQ_MULAN: lambda folder, downloads: MuqMulan.from_folder(folder, downloads=downloads),
    }
)
"""The reader of a folder; the flag lets what it names of the Hub be fetched."""


def load_pretrained(folder: Path, *, downloads: bool = False) -> JointEmbedder:
    """The joint embedding of a folder: a MuQ-MuLan, whose config.json names no model type but has
    its part `mulan`, or a CLAP.

    Raises FileNotFoundError or ValueError naming the file at fault.
    """
    kind = MUQ_MULAN if "mulan" in read_json(folder / "config.json") else CLAP
    return PRETRAINED[kind](folder, downloads)
