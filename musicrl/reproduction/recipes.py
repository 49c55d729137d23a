"""The paper's models (section 4.2): what each is trained on, and where it starts.

A model's start is also its KL reference: MusicRL-RU starts from MusicRL-R, and its divergence is
penalised and measured from there. Turns a recipe into the settings of a run; trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from musicrl.closest import closest
from musicrl.config import ModelConfig, TrainConfig, load_config
from musicrl.rewards.preference import PREFERENCE
from musicrl.settings import build, merge, to_tree

BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is made."""

    preset: str
    start: str = BASE
    """The model that it starts from, which is its KL reference too."""
    share: float = 1.0
    """Its updates, as a share of those of MusicRL-R."""


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "MuLan": Recipe(preset="musicrl-mulan"),
        "Quality": Recipe(preset="musicrl-quality"),
        "R": Recipe(preset="musicrl-r"),
        "U": Recipe(preset="musicrl-u", share=0.4),
        "RU": Recipe(preset="musicrl-ru", start="R", share=0.2),
        "joint": Recipe(preset="musicrl-joint", share=1.2),
    }
)
"""The paper's listeners heard R after 10,000 steps, U after 2,000 and RU after 1,000 more than R's
(section 4.4): RU has half of U's updates here too, and both have twice their part of R's, which are
few. The joint model has as many as R and RU together."""
UPDATES = 300
"""Of R, unless told otherwise: this project's choice, for less than 90 minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Sizes that take the place of the presets' (none: the preset's own)."""

    updates: int | None = None
    """Updates of R and of the models of one of its rewards (none: 300); U has two fifths of them,
    RU a fifth and the joint model as many as R and RU."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Updates of a model as a share of R's, by name, in place of those proportions."""
    prompts_per_step: int | None = None
    samples_per_prompt: int | None = None
    clip_seconds: float | None = None
    """Length of the clips that are trained on."""
    checkpoint_every: int = 10
    """Updates that a killed run loses at most."""

    def __post_init__(self) -> None:
        for name in ("updates", "prompts_per_step", "samples_per_prompt", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"scale.{name} must be 1 or more, got {value}")
        for name, share in self.shares.items():
            if name not in RECIPES:
                raise ValueError(f"scale.shares names {name!r}{closest(name, list(RECIPES))}")
            if not share > 0:
                raise ValueError(f"scale.shares.{name} must be above 0, got {share}")


def check_models(names: Sequence[str]) -> None:
    """Raise ValueError unless every name is of a recipe and comes after the model it starts from."""
    known = {BASE}
    for name in names:
        if name not in RECIPES:
            raise ValueError(f"no recipe {name!r}{closest(name, list(RECIPES))}")
        if name in known:
            raise ValueError(f"models names {name} twice")
        start = RECIPES[name].start
        if start not in known:
            raise ValueError(f"model {name} starts from {start}, which must stand before it")
        known.add(name)


def run_settings(
    name: str,
    scale: ScaleConfig,
    *,
    model: ModelConfig,
    preference_file: Path | None,
    seed: int,
    out: Path,
) -> TrainConfig:
    """The settings of the run that makes a model, in the folder `out`.

    `model` is the world and the policy to start from (none: the preset's). Raises ValueError where
    the sizes contradict the preset.
    """
    recipe = RECIPES[name]
    preset = load_config(recipe.preset)
    updates = updates_of(name, scale)
    reward = preset.reward
    if PREFERENCE in reward.weights:
        reward = replace(reward, preference_file=preference_file)
    rollout = _over(to_tree(preset.rollout), scale)
    tree: dict[str, Any] = {
        "out": str(out),
        "seed": seed,
        "iterations": updates,
        "checkpoint_every": min(scale.checkpoint_every, updates),
        "rollout": rollout,
        "reward": to_tree(reward),
        "model": to_tree(model),
        "update": {"decay_steps": updates},
        # The reproduction measures every model itself; these two are for the ear.
        "evaluation": {"prompts": 2, "audio_prompts": 2, "every": 0},
    }
    return build(TrainConfig, merge(to_tree(preset), tree), origin=f"model {name}")


def share_of(name: str, scale: ScaleConfig) -> float:
    """Updates of a model's run as a share of R's."""
    return scale.shares.get(name, RECIPES[name].share)


def updates_of(name: str, scale: ScaleConfig) -> int:
    """Updates of a model's run."""
    return max(1, round(share_of(name, scale) * (scale.updates or UPDATES)))


def _over(rollout: dict[str, Any], scale: ScaleConfig) -> dict[str, Any]:
    """The rollout's settings with those of the scale; a chunk holds no more prompts than a step."""
    names = ("prompts_per_step", "samples_per_prompt", "clip_seconds")
    given = {name: value for name in names if (value := getattr(scale, name)) is not None}
    merged = {**rollout, **given}
    chunk = min(merged["prompts_per_chunk"], merged["prompts_per_step"])
    return {**merged, "prompts_per_chunk": chunk}
