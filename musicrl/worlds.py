"""The families of worlds that a run may live in, and which of them a folder is of.

To add one: a class that is a `PlayableWorld`, and a line in the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from musicrl.closest import closest
from musicrl.evaluation.family import MUSICLM, Family, own_prompts
from musicrl.evaluation.musicgen_ears import musicgen_ears
from musicrl.musicgen_world import WORLD_FILE, MusicGenWorld
from musicrl.playable import PlayableWorld
from musicrl.prompts import SHIPPED as CAPTIONS
from musicrl.rewards.base import Reward
from musicrl.settings import read_yaml
from musicrl.world import find_world

DEFAULT = "musiclm"


def _own_or_shipped_prompts(folder: Path) -> Path:
    """A world without prompts has the captions that ship: any of them is a text to MusicGen."""
    named = read_yaml(folder / WORLD_FILE).get("prompts")
    if named is not None:
        return folder / str(named)
    own = own_prompts(folder)
    return own if own.is_file() else CAPTIONS


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        DEFAULT: MUSICLM,
        "musicgen": Family(
            load=MusicGenWorld.load, ears=musicgen_ears, prompts=_own_or_shipped_prompts
        ),
    }
)
"""By the name that a folder's world.yaml gives; a folder without that file is of `DEFAULT`."""


def family_of(folder: Path | None = None) -> Family:
    """That of a folder (none: the shipped world's). Raises ValueError for an unknown one."""
    path = find_world(folder) / WORLD_FILE
    if not path.is_file():
        return FAMILIES[DEFAULT]
    name = read_yaml(path).get("family")
    if name not in FAMILIES:
        raise ValueError(f"{path}: unknown family {name!r}{closest(str(name), list(FAMILIES))}")
    return FAMILIES[str(name)]


def load_world(folder: Path | None = None, policy: Path | None = None) -> PlayableWorld:
    """The world of a folder (none: the shipped one), with another policy file if given.

    Raises FileNotFoundError or ValueError naming the file at fault.
    """
    return family_of(folder).load(find_world(folder), policy)


def judges_of_world(folder: Path | None = None) -> tuple[Reward, ...]:
    """The judges of a folder's world. Raises FileNotFoundError or ValueError naming the file."""
    return family_of(folder).ears(find_world(folder)).judges


def prompts_of_world(folder: Path | None = None) -> Path:
    """The file of a folder's prompts. Raises ValueError naming the file at fault."""
    return family_of(folder).prompts(find_world(folder))
