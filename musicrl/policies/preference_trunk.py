"""What a preference model reads clips with: a policy's decoder without its outputs, by family.

A trunk gives the hidden state of every step, which has seen the steps before it. To add a family:
functions that build one and name a policy's tensors for it, and a line in `TRUNKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from musicrl.layout import Layout
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.musiclm import MusicLM
from musicrl.policies.text import TextStates
from musicrl.policies.trunk import Trunk

Config = MusicLMConfig | DelayedConfig
AnyConfig = TypeVar("AnyConfig", bound=Config)
DEPTH_PARTS = ("depth_in", "depth_token", "depth_position", "depth_blocks", "depth_norm")
"""Of a `Trunk`: what only predicts the tokens inside a frame. A hidden state has seen whole frames."""


class PreferenceTrunk(Protocol):
    """Clips to states; a module."""

    @property
    def layout(self) -> Layout: ...

    def hidden(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Hidden states [B, S, W] of every step of tokens int64 [B, S, K], of what lies before it;
        conditions int64 [B, C], -1 only for none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkFamily:
    """How the trunks of one family of policies are made."""

    policy: type[nn.Module]
    read: Callable[[Mapping[str, Any]], Config]
    """A configuration from what a file holds; raises ValueError naming the setting at fault."""
    build: Callable[[Config, nn.Module | None], nn.Module]
    """A trunk of random weights for clips as long as a configuration's; where text is encoded, by
    the frozen encoder of a policy or trunk of the family (none: there is no text)."""
    weights: Callable[[nn.Module], Mapping[str, Tensor]]
    """The tensors of a policy under a trunk's names, with others beside them."""


def _musiclm(config: Config, like: nn.Module | None) -> Trunk:
    assert isinstance(config, MusicLMConfig)
    trunk = Trunk(_one_step_more(config))
    for part in DEPTH_PARTS:
        delattr(trunk, part)
    return trunk


def _musiclm_weights(policy: nn.Module) -> Mapping[str, Tensor]:
    assert isinstance(policy, MusicLM)
    return policy.trunk.state_dict()


def _delayed(config: Config, like: nn.Module | None) -> DelayedLM:
    assert isinstance(config, DelayedConfig)
    trunk = DelayedLM(_one_step_more(config), _text_of(like, config.width))
    del trunk.head
    return trunk


def _text_of(like: nn.Module | None, width: int) -> TextStates | None:
    if not isinstance(like, DelayedLM) or like.text is None:
        return None
    return like.text.fresh(width)


def _one_step_more(config: AnyConfig) -> AnyConfig:
    """One position more than a clip has steps: the one that has seen them all."""
    return replace(config, num_steps=config.num_steps + 1)


TRUNKS: Mapping[str, TrunkFamily] = MappingProxyType(
    {
        "musiclm": TrunkFamily(
            policy=MusicLM,
            read=MusicLMConfig.from_mapping,
            build=_musiclm,
            weights=_musiclm_weights,
        ),
        "delayed": TrunkFamily(
            policy=DelayedLM,
            read=DelayedConfig.from_mapping,
            build=_delayed,
            weights=nn.Module.state_dict,
        ),
    }
)
"""By the name that a model's file gives; a file without one is of the first."""


def family_of_policy(policy: nn.Module) -> str:
    """Raises TypeError when the policy is of a family without a trunk to copy."""
    for name, family in TRUNKS.items():
        if isinstance(policy, family.policy):
            return name
    raise TypeError(f"no preference model is known for a policy {type(policy).__name__}")
