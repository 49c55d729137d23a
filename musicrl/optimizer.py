"""One network's optimizer: AdamW, and Muon for matrices; it survives a bad batch.

Knows nothing of losses or of what the network is. The paper names no optimizer or warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musicrl.muon import Muon
from musicrl.ranks import Alone, Ranks

PEAK = "peak_lr"
"""Key of a parameter group: its rate before the schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Settings of one optimizer, as `UpdateConfig` documents them."""

    learning_rate: float
    muon_learning_rate: float | None
    muon_momentum: float
    warmup_steps: int
    decay_steps: int
    max_grad_norm: float | None
    beta1: float
    beta2: float
    weight_decay: float


class Optimizer:
    """Steps a module along its accumulated gradients.

    With a `muon_learning_rate` the weights of linear layers and embeddings are stepped by Muon
    (Jordan et al. 2024): every direction of a matrix moves alike, however small its share of the
    gradient.
    """

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, ranks: Ranks | None = None
    ) -> None:
        """`ranks` hold the module between them (none: this process alone)."""
        self.config = config
        self._ranks: Ranks = ranks or Alone()
        self.num_steps = 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._stepping: list[torch.optim.Optimizer] = []
        matrices = [] if config.muon_learning_rate is None else list(_matrices(module))
        taken = {id(weight) for weight, _ in matrices}
        if others := [p for p in self.parameters if id(p) not in taken]:
            groups = [{"params": others, PEAK: config.learning_rate}]
            betas = (config.beta1, config.beta2)
            decay = config.weight_decay
            self._stepping.append(torch.optim.AdamW(groups, betas=betas, weight_decay=decay))
        if matrices:
            assert config.muon_learning_rate is not None
            groups = [
                {"params": [weight], PEAK: config.muon_learning_rate * scale}
                for weight, scale in matrices
            ]
            momentum, decay = config.muon_momentum, config.weight_decay
            muon = Muon(groups, momentum=momentum, weight_decay=decay, ranks=self._ranks)
            self._stepping.append(muon)

    @property
    def rates(self) -> dict[str, float]:
        """Of the next step, by setting."""
        peaks = {
            "learning_rate": self.config.learning_rate,
            "muon_learning_rate": self.config.muon_learning_rate,
        }
        return {name: peak * self.schedule for name, peak in peaks.items() if peak is not None}

    @property
    def schedule(self) -> float:
        """Share of each peak rate that the next step takes: rises linearly over the first
        `warmup_steps`, and falls linearly from 1 at step 0 to a tenth at step `decay_steps` (0:
        does not fall)."""
        warmup, decay = max(self.config.warmup_steps, 1), self.config.decay_steps
        rise = min(1.0, (self.num_steps + 1) / warmup)
        fall = max(0.1, 1 - 0.9 * self.num_steps / decay) if decay else 1.0
        return rise * fall

    def step(self, loss: float) -> float | None:
        """Apply and clear the gradients; their norm before clipping, or None and unchanged weights
        when the norm or `loss` is not finite."""
        limit = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        grads = [p.grad for p in self.parameters if p.grad is not None]
        total = self._ranks.whole(nn.utils.get_total_norm(grads))
        nn.utils.clip_grads_with_norm_(self.parameters, limit, total)
        norm = float(total)
        is_sound = math.isfinite(norm) and math.isfinite(loss)
        if is_sound:
            for optimizer in self._stepping:
                for group in optimizer.param_groups:
                    group["lr"] = group[PEAK] * self.schedule
                optimizer.step()
            self.num_steps += 1
        for parameter in self.parameters:
            parameter.grad = None
        return norm if is_sound else None

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the moments, whole and on the CPU, named `<optimizer>.<parameter
        number>.<moment>`."""
        return {
            f"{o}.{i}.{name}": self._ranks.whole(value).to("cpu", copy=True)
            for o, optimizer in enumerate(self._stepping)
            for i, moments in optimizer.state_dict()["state"].items()
            for name, value in moments.items()
        }

    def load(self, tensors: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Restore what `tensors` and `num_steps` held, of the same parts and optimizers."""
        states: dict[int, dict[int, dict[str, Any]]] = {}
        for key, tensor in tensors.items():
            o, i, name = key.split(".")
            own = tensor.clone() if name == "step" else self._own(int(o), int(i), tensor)
            states.setdefault(int(o), {}).setdefault(int(i), {})[name] = own
        for number, optimizer in enumerate(self._stepping):
            state = states.get(number, {})
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.num_steps = num_steps

    def _own(self, optimizer: int, number: int, moment: Tensor) -> Tensor:
        """What this rank holds of a parameter's moment."""
        groups = self._stepping[optimizer].param_groups
        parameter = [p for group in groups for p in group["params"]][number]
        return self._ranks.part(moment.clone(), parameter)


def choose_parts(module: nn.Module, parts: Sequence[str]) -> None:
    """Let only the parameters learn whose names start with one of `parts` (none given: as it is).

    Raises ValueError naming the part that no parameter belongs to.
    """
    if not parts:
        return
    names = [name for name, _ in module.named_parameters()]
    for part in parts:
        if not any(_is_under(name, part) for name in names):
            known = ", ".join(dict.fromkeys(_first_two(name) for name in names))
            raise ValueError(f"update.parts: the policy has no part {part!r}, it has {known}")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(_is_under(name, part) for part in parts))


def _is_under(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _first_two(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _matrices(module: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Weights that Muon steps, and the scale of their rate. Inputs of a linear layer are normalised
    to a length of sqrt(width); the input of an embedding has length 1, so that its rows must move
    that much further to be felt alike."""
    for part in module.modules():
        if isinstance(part, nn.Linear) and part.weight.requires_grad:
            yield part.weight, 1.0
        elif isinstance(part, nn.Embedding) and part.weight.requires_grad:
            yield part.weight, math.sqrt(part.embedding_dim)
