"""A family of worlds, as evaluation and the loops above it read one: by functions of a folder.

Which families there are stands in `worlds.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from musicrl.evaluation.ears import Ears
from musicrl.evaluation.judges import load_ears
from musicrl.playable import PlayableWorld
from musicrl.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the parts of one kind of world are read."""

    load: Callable[[Path, Path | None], PlayableWorld]
    """From a folder and a policy file (none: the folder's own)."""
    ears: Callable[[Path], Ears]
    """Who judges the clips of a folder's world."""
    prompts: Callable[[Path], Path]
    """The file of a folder's prompts."""


def own_prompts(folder: Path) -> Path:
    """The file of prompts that lies in a world's folder."""
    return folder / "prompts.parquet"


MUSICLM = Family(load=World.load, ears=load_ears, prompts=own_prompts)
"""The paper's: a world whose models were trained here."""
