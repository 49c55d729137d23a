"""The preference model: a copy of the policy's global transformer under one scalar (paper section 5).

    conditions [B, C] ──► C positions ─┐
    frame s-1  [B, K] ──► sum of embeddings ──► global transformer ──► hidden after s frames
    mean over the hidden states after 1..S frames ──► linear, starting at 0 ──► score

The paper says neither where it pools nor what the head is: both are this project's choice. It knows
no losses, no data and no captions' text, only their conditioning tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.musiclm import MusicLM
from musicrl.policies.trunk import Trunk

KIND = "preference"
"""Of its weight file."""
DEPTH_PARTS = ("depth_in", "depth_token", "depth_position", "depth_blocks", "depth_norm")
"""Of a trunk: what only predicts the tokens inside a frame. A hidden state has seen whole frames."""


class PreferenceModel(nn.Module):
    """The strength of a clip for a caption: sigmoid of the difference of two scores is the
    probability that the first is preferred (Bradley and Terry; Christiano et al. 2017)."""

    def __init__(self, config: MusicLMConfig) -> None:
        super().__init__()
        self.config = config
        # One more position than a clip has frames: the one that has seen them all.
        self.trunk = Trunk(replace(config, num_steps=config.num_steps + 1))
        for part in DEPTH_PARTS:
            delattr(self.trunk, part)
        self.head = nn.Linear(config.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_policy(cls, policy: nn.Module, *, layers: int | None = None) -> PreferenceModel:
        """A copy of the first `layers` (none: all) of the policy's layers; every score is 0.

        Raises TypeError when the policy is of a family without a trunk to copy, ValueError when it
        has fewer layers.
        """
        if not isinstance(policy, MusicLM):
            raise TypeError(f"no preference model is known for a policy {type(policy).__name__}")
        model = cls(with_layers(policy.config, layers))
        own = model.trunk.state_dict()
        model.trunk.load_state_dict(
            {k: v for k, v in policy.trunk.state_dict().items() if k in own}
        )
        return model

    @property
    def num_streams(self) -> int:
        return self.config.layout.num_streams

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Scores float32 [B] from tokens int64 [B, S, K] and conditions int64 [B, C]; conditions of
        -1 are none."""
        seen = self.trunk.hidden(F.pad(tokens, (0, 0, 0, 1)), conditions)[:, 1:]
        score: Tensor = self.head(seen.mean(1))[:, 0]
        return score.float()

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the model, half precision, with `facts` (origin, measured figures) beside its
        sizes."""
        config = {"model": asdict(self.config), "facts": dict(facts)}
        save_tensors(path, half(self.state_dict()), kind=KIND, config=config)

    @classmethod
    def from_file(cls, path: Path) -> tuple[PreferenceModel, dict[str, Any]]:
        """A file's model and its facts.

        Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
        """
        tensors, config = load_tensors(path, kind=KIND)
        try:
            model = cls(MusicLMConfig.from_mapping(config["model"]))
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from fault
        load_into(model, tensors, origin=path)
        return model, config["facts"]


def with_layers(config: MusicLMConfig, layers: int | None) -> MusicLMConfig:
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
