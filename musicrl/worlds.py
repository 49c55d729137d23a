"""The families of worlds that a run may live in, and which of them a folder is of.

To add one: a class that is a `PlayableWorld`, and a line in the table below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from musicrl.closest import closest
from musicrl.evaluation.judges import load_judges, unlearned_judges
from musicrl.musicgen_world import WORLD_FILE, MusicGenWorld
from musicrl.playable import PlayableWorld
from musicrl.prompts import SHIPPED as CAPTIONS
from musicrl.rewards.base import Reward
from musicrl.settings import read_yaml
from musicrl.world import World, find_world

DEFAULT = "musiclm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the parts of one kind of world are read."""

    load: Callable[[Path, Path | None], PlayableWorld]
    """From a folder and a policy file (none: the folder's own)."""
    judges: Callable[[Path], tuple[Reward, ...]]
    """Those of a folder."""
    prompts: Callable[[Path], Path]
    """The file of a folder's prompts."""


def _unlearned(_: Path) -> tuple[Reward, ...]:
    """A world without a judge of its own has those that no data taught."""
    return unlearned_judges()


def _own_prompts(folder: Path) -> Path:
    return folder / "prompts.parquet"


def _own_or_shipped_prompts(folder: Path) -> Path:
    """A world without prompts has the captions that ship: any of them is a text to MusicGen."""
    named = read_yaml(folder / WORLD_FILE).get("prompts")
    if named is not None:
        return folder / str(named)
    own = _own_prompts(folder)
    return own if own.is_file() else CAPTIONS


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        DEFAULT: Family(load=World.load, judges=load_judges, prompts=_own_prompts),
        "musicgen": Family(
            load=MusicGenWorld.load, judges=_unlearned, prompts=_own_or_shipped_prompts
        ),
    }
)
"""By the name that a folder's world.yaml gives; a folder without that file is of `DEFAULT`."""


def load_world(folder: Path | None = None, policy: Path | None = None) -> PlayableWorld:
    """The world of a folder (none: the shipped one), with another policy file if given.

    Raises FileNotFoundError or ValueError naming the file at fault.
    """
    folder = find_world(folder)
    return FAMILIES[_family(folder)].load(folder, policy)


def judges_of_world(folder: Path | None = None) -> tuple[Reward, ...]:
    """The judges of a folder's world. Raises FileNotFoundError or ValueError naming the file."""
    folder = find_world(folder)
    return FAMILIES[_family(folder)].judges(folder)


def prompts_of_world(folder: Path | None = None) -> Path:
    """The file of a folder's prompts. Raises ValueError naming the file at fault."""
    folder = find_world(folder)
    return FAMILIES[_family(folder)].prompts(folder)


def _family(folder: Path) -> str:
    path = folder / WORLD_FILE
    if not path.is_file():
        return DEFAULT
    name = read_yaml(path).get("family")
    if name not in FAMILIES:
        raise ValueError(f"{path}: unknown family {name!r}{closest(str(name), list(FAMILIES))}")
    return str(name)
