"""One network's optimizer: AdamW with warm-up and a clipped gradient, which survives a bad batch.

Knows nothing of losses or of what the network is. The paper names no optimizer or warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamConfig:
    """Settings of one optimizer, as `UpdateConfig` documents them."""

    learning_rate: float
    warmup_steps: int
    decay_steps: int
    max_grad_norm: float | None
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


class Optimizer:
    """Steps a module along its accumulated gradients."""

    def __init__(self, module: nn.Module, config: AdamConfig) -> None:
        self.config = config
        self.num_steps = 0
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._adam = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step: rises linearly over the first `warmup_steps`, and falls linearly from
        its peak at step 0 to a tenth of it at step `decay_steps` (0: does not fall)."""
        warmup, decay = max(self.config.warmup_steps, 1), self.config.decay_steps
        rise = min(1.0, (self.num_steps + 1) / warmup)
        fall = max(0.1, 1 - 0.9 * self.num_steps / decay) if decay else 1.0
        return self.config.learning_rate * rise * fall

    def step(self, loss: float) -> float | None:
        """Apply and clear the gradients; their norm before clipping, or None and unchanged weights
        when the norm or `loss` is not finite."""
        limit = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(self._parameters, limit))
        is_sound = math.isfinite(norm) and math.isfinite(loss)
        if is_sound:
            for group in self._adam.param_groups:
                group["lr"] = self.learning_rate
            self._adam.step()
            self.num_steps += 1
        self._adam.zero_grad(set_to_none=True)
        return norm if is_sound else None

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the moments, named `<parameter number>.<moment>`."""
        state = self._adam.state_dict()["state"]
        return {f"{i}.{k}": v.clone() for i, moments in state.items() for k, v in moments.items()}

    def load(self, tensors: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Restore what `tensors` and `num_steps` held."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, moment = name.split(".")
            state.setdefault(int(index), {})[moment] = tensor.clone()
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict({"state": state, "param_groups": groups})
        self.num_steps = num_steps
