"""The preference model: a copy of the policy's decoder under one scalar (paper section 5).

    conditions [B, C] ──► a prefix, or states to attend to ─┐
    tokens of step s-1 [B, K] ──► sum of embeddings ──► trunk ──► hidden after s steps
    mean over the hidden states after 1..S steps ──► linear, starting at 0 ──► score

The paper says neither where it pools nor what the head is: both are this project's choice. It knows
no losses, no data and no captions' text, only their conditioning tokens; families of trunks stand in
`preference_trunk.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.layout import Layout
from musicrl.policies.preference_trunk import (
    TRUNKS,
    AnyConfig,
    Config,
    PreferenceTrunk,
    family_of_policy,
)

KIND = "preference"
"""Of its weight file."""


class PreferenceModel(nn.Module):
    """The strength of a clip for a caption: sigmoid of the difference of two scores is the
    probability that the first is preferred (Bradley and Terry; Christiano et al. 2017)."""

    def __init__(self, family: str, config: Config, like: nn.Module | None = None) -> None:
        """Of random weights; `like` as `TrunkFamily.build` has it."""
        super().__init__()
        self.family, self.config = family, config
        self.trunk = TRUNKS[family].build(config, like)
        self.head = nn.Linear(config.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_policy(cls, policy: nn.Module, *, layers: int | None = None) -> PreferenceModel:
        """A copy of the first `layers` (none: all) of the policy's layers; every score is 0.

        Raises TypeError when the policy is of a family without a trunk to copy, ValueError when it
        has fewer layers.
        """
        family = family_of_policy(policy)
        config = cast(Config, policy.config)
        model = cls(family, with_layers(config, layers), policy)
        own, theirs = model.trunk.state_dict(), TRUNKS[family].weights(policy)
        model.trunk.load_state_dict({name: theirs[name] for name in own})
        return model

    def fresh(self) -> PreferenceModel:
        """Another one of the same shape, of random weights."""
        return PreferenceModel(self.family, self.config, self.trunk)

    @property
    def layout(self) -> Layout:
        return self.config.layout

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Scores float32 [B] from tokens int64 [B, S, K] and conditions int64 [B, C]; conditions of
        -1 are none."""
        trunk = cast(PreferenceTrunk, self.trunk)
        seen = trunk.hidden(F.pad(tokens, (0, 0, 0, 1)), conditions)[:, 1:]
        score: Tensor = self.head(seen.mean(1))[:, 0]
        return score.float()

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the model, half precision, with `facts` (origin, measured figures) beside its
        sizes."""
        config = {"family": self.family, "model": asdict(self.config), "facts": dict(facts)}
        save_tensors(path, half(self.state_dict()), kind=KIND, config=config)

    @classmethod
    def from_file(
        cls, path: Path, policy: nn.Module | None = None
    ) -> tuple[PreferenceModel, dict[str, Any]]:
        """A file's model and its facts. A model of a policy with a text encoder reads text by that
        of `policy`.

        Raises FileNotFoundError, or ValueError naming the file and what is wrong with it, also when
        it is of another family than `policy`.
        """
        tensors, values = load_tensors(path, kind=KIND)
        name = str(values.get("family", next(iter(TRUNKS))))
        if name not in TRUNKS:
            raise ValueError(f"{path}: unknown family {name!r}")
        if policy is not None and family_of_policy(policy) != name:
            raise ValueError(
                f"{path} is of the family {name!r}, the world's policy of "
                f"{family_of_policy(policy)!r}"
            )
        try:
            config = TRUNKS[name].read(values["model"])
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from fault
        model = cls(name, config, policy)
        load_into(model, tensors, origin=path)
        return model, values["facts"]


def read_facts(path: Path) -> dict[str, Any]:
    """What a model's file says of itself. Raises FileNotFoundError or ValueError naming the file."""
    facts: dict[str, Any] = load_tensors(path, kind=KIND)[1]["facts"]
    return facts


def with_layers(config: AnyConfig, layers: int | None) -> AnyConfig:
    """The configuration of the first `layers` (none: all) layers."""
    if layers is None:
        return config
    if not 1 <= layers <= config.num_layers:
        raise ValueError(f"layers must be 1 to {config.num_layers}, the policy's, got {layers}")
    return replace(config, num_layers=layers)


def bradley_terry(margin: Tensor, first_wins: Tensor) -> Tensor:
    """Mean of -log sigmoid(score of the preferred - score of the other), nats.

    `margin` float32 [M] is the first clip's score less the second's, `first_wins` bool [M].
    """
    if margin.shape != first_wins.shape:
        raise ValueError(f"margins {tuple(margin.shape)}, choices {tuple(first_wins.shape)}")
    return -F.logsigmoid(torch.where(first_wins, margin, -margin)).mean()
