"""Low-rank adapters (Hu et al. 2021): what learns is a product of two thin matrices on each layer.

    weight as used  =  weight, frozen  +  scale x up [O, r] @ down [r, I]

`peft` replaces whole layers and calls them; sampler and learner here read `layer.weight` and give it
to a backend, so that the adapter is a parametrization of that weight. Only adapters are published, and
every sampler merges them into the base that it has; saved and exported weights are merged. It knows neither optimizer nor algorithm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from musicrl.checkpoint import load_tensors

UP, DOWN = "up", "down"
ORIGINAL, INSIDE = ".parametrizations.weight.original", ".parametrizations.weight.0."


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which layers get adapters. There is no dropout: it would make the learner's log-probabilities
    differ from the sampler's."""

    rank: int = 0
    """Of the adapters (0: there are none, and all weights learn)."""
    alpha: float | None = None
    """Adapters are scaled by alpha / rank (none: 2 x rank, a scale of 2)."""
    targets: tuple[str, ...] = ()
    """Linear layers that get one, by the last part of their names, as qkv (none: all of them)."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora: rank must be 0 or more, got {self.rank}")
        if not self.rank and (self.alpha is not None or self.targets):
            raise ValueError("lora: alpha and targets are read only with a rank above 0")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"lora: alpha must be above 0, got {self.alpha}")

    @property
    def scale(self) -> float:
        return 2.0 if self.alpha is None else self.alpha / self.rank


class Adapter(nn.Module):
    """Adds nothing until `up`, which starts at zero, has learned."""

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        O, I = weight.shape
        self.scale = config.scale
        self.is_on = True
        self.down = nn.Parameter(torch.randn(config.rank, I, device=weight.device) / I**0.5)
        self.up = nn.Parameter(torch.zeros(O, config.rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Weight [O, I] as it is used, float32 whatever the products' precision."""
        if not self.is_on:
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down)


class Base(nn.Module):
    """An adapted policy as it was before: the KL's reference, without a copy of it."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self._adapted = (policy,)  # no part of this module: freezing it must not freeze adapters

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """As the policy's."""
        with switched_off(self._adapted[0]):
            logits: Tensor = self._adapted[0](tokens, conditions)
        return logits

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """The policy's, as it was."""
        with switched_off(self._adapted[0]):
            return merged(self._adapted[0])


def adapt(policy: nn.Module, config: LoraConfig) -> None:
    """Freeze a policy and put adapters that learn on its linear layers.

    Raises ValueError naming a target that it has no layer for.
    """
    linears = {k: part for k, part in policy.named_modules() if isinstance(part, nn.Linear)}
    names = {name: name.rpartition(".")[2] for name in linears}
    for target in config.targets:
        if target not in names.values():
            known = ", ".join(dict.fromkeys(names.values()))
            raise ValueError(
                f"model.lora.targets: the policy has no layer {target!r}, it has {known}"
            )
    policy.requires_grad_(False)
    for name, linear in linears.items():
        if not config.targets or names[name] in config.targets:
            adapter = Adapter(linear.weight, config)
            parametrize.register_parametrization(linear, "weight", adapter)


@contextmanager
def switched_off(policy: nn.Module) -> Iterator[None]:
    """Run with the policy as it was before `adapt`."""
    adapters = [part for part in policy.modules() if isinstance(part, Adapter)]
    for adapter in adapters:
        adapter.is_on = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_on = True


def published(module: nn.Module) -> tuple[dict[str, Tensor], float] | None:
    """The matrices of a module's adapters, as `<layer>.up` and `<layer>.down`, and the scale of their
    products; None for a module without adapters."""
    found: dict[str, Tensor] = {}
    scale = 0.0
    for name, part in module.named_modules():
        if isinstance(part, Adapter):
            layer = name.partition(".parametrizations.")[0]
            found[f"{layer}.{UP}"], found[f"{layer}.{DOWN}"] = part.up, part.down
            scale = part.scale
    return (found, scale) if found else None


def saved(checkpoint: Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """The matrices of the adapters that a run's checkpoint holds, named as by `published`, and their
    settings.

    Raises FileNotFoundError or ValueError naming the file, also where the run had no adapters.
    """
    tensors, _ = load_tensors(checkpoint / "learner.safetensors", kind="learner")
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if "lora" not in state:
        raise ValueError(f"{checkpoint} has no adapters: it is of a run without model.lora")
    found = {
        name.removeprefix("policy/").replace(INSIDE, "."): tensor
        for name, tensor in tensors.items()
        if name.startswith("policy/") and INSIDE in name
    }
    return found, LoraConfig(**{**state["lora"], "targets": tuple(state["lora"]["targets"])})


@torch.no_grad()
def merge(
    module: nn.Module, tensors: Mapping[str, Tensor], scale: float, bases: dict[str, Tensor]
) -> None:
    """Give the linear layers of a module without adapters the weights that `published` adapters make
    of them. `bases` holds each layer's weight as it was before the first of them, and is filled here.

    Raises ValueError naming a layer that is not there or does not fit; nothing is changed then.
    """
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    linears = {layer: _linear(module, layer, tensors) for layer in layers}
    for layer, linear in linears.items():
        base = bases.setdefault(layer, linear.weight.detach().clone())
        up, down = (tensors[f"{layer}.{part}"].to(base.device) for part in (UP, DOWN))
        linear.weight.copy_(base + scale * (up @ down))


def _linear(module: nn.Module, layer: str, tensors: Mapping[str, Tensor]) -> nn.Linear:
    try:
        linear = module.get_submodule(layer)
    except AttributeError as fault:
        raise ValueError(f"adapters of an unknown layer {layer!r}") from fault
    up, down = (tensors[f"{layer}.{part}"] for part in (UP, DOWN))
    if not isinstance(linear, nn.Linear) or linear.weight.shape != (len(up), down.shape[1]):
        raise ValueError(
            f"adapters of layer {layer!r} make {len(up)} x {down.shape[1]} numbers of it"
        )
    return linear


@torch.no_grad()
def merged(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by name, as if no layer of it had ever had an adapter."""
    tensors: Mapping[str, Tensor] = module.state_dict()
    found = {}
    for name, tensor in tensors.items():
        layer, is_original, _ = name.partition(ORIGINAL)
        if is_original:
            found[f"{layer}.weight"] = cast(nn.Linear, module.get_submodule(layer)).weight
        elif ".parametrizations." not in name:
            found[name] = tensor
    return found
