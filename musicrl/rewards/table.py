"""The table of rewards: a name in the configuration to a factory that takes the world.

To add a reward, write a file in this folder and a line here; a reward outside this project is named
`package.module:Class`, and the class is called with the world.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from musicrl.closest import closest
from musicrl.embedders.base import JointEmbedder
from musicrl.rewards.aesthetics import (
    AESTHETICS,
    AESTHETICS_RANGE,
    AestheticsConfig,
    load_aesthetics,
)
from musicrl.rewards.base import Reward
from musicrl.rewards.preference import PreferenceWorld, load_preference
from musicrl.rewards.quality import QUALITY_RANGE, load_quality
from musicrl.rewards.text import TextAdherence


class RewardWorld(PreferenceWorld, Protocol):
    """What a reward may ask of the world that it scores."""

    @property
    def embedder(self) -> JointEmbedder: ...


RewardFactory = Callable[[RewardWorld], Reward]


def _text(world: RewardWorld) -> Reward:
    return TextAdherence(world.embedder)


def _quality(world: RewardWorld) -> Reward:
    return load_quality(world.folder)


def _aesthetics(world: RewardWorld) -> Reward:
    return load_aesthetics(AestheticsConfig())


REWARDS: Mapping[str, RewardFactory] = MappingProxyType(
    {
        "text": _text,
        "quality": _quality,
        "preference": load_preference,
        AESTHETICS: _aesthetics,
    }
)
RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"quality": QUALITY_RANGE, AESTHETICS: AESTHETICS_RANGE}
)
"""(lowest, highest) raw value of a reward that enters the mix as 0..1 unless told otherwise."""


def check_reward_name(name: str) -> None:
    """Raise ValueError, naming the nearest, unless `name` is listed or `package.module:Class`."""
    module, colon, attribute = name.partition(":")
    if name in REWARDS or (colon and module and attribute):
        return
    raise ValueError(f"unknown reward {name!r}{closest(name, list(REWARDS))}")


def make_reward(name: str, world: RewardWorld) -> Reward:
    """The reward called `name`, for `world`.

    Raises ValueError for a name that is not listed, or whose module or class does not exist.
    """
    check_reward_name(name)
    return REWARDS[name](world) if name in REWARDS else _imported(name)(world)


def _imported(name: str) -> RewardFactory:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as fault:
        raise ValueError(f"reward {name!r}: cannot import {module_name!r}: {fault}") from fault
    if attribute not in vars(module):
        raise ValueError(f"reward {name!r}: module {module_name!r} has no {attribute!r}")
    factory: RewardFactory = vars(module)[attribute]
    return factory
