"""Muon (Jordan et al. 2024): steps of matrices whose directions all have about the same length.

The step is that of `torch.optim.Muon`, and so is its state. What differs is the precision of the
orthogonalisation: float32 on a CPU, where bfloat16 products are many times slower unless the
processor has instructions for them; bfloat16 elsewhere, as torch does it. Ranks that hold a part of
each matrix keep a part of its momentum; every rank orthogonalises the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from musicrl.ranks import Alone, Ranks

COEFFICIENTS = (3.4445, -4.775, 2.0315)
NUM_ITERATIONS = 5
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Of matrices alone; a group's `lr` is the length of a step along each direction."""

    def __init__(
        self,
        groups: Iterable[Any],
        *,
        momentum: float,
        weight_decay: float,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        self._ranks: Ranks = ranks or Alone()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._step(matrix, group)

    def _step(self, matrix: Tensor, group: dict[str, Any]) -> None:
        """A decayed mean of the gradients, looked ahead by one (Nesterov), with equal lengths; tall
        matrices step further, by the root of their sides' ratio."""
        state, grad = self.state[matrix], matrix.grad
        assert grad is not None
        mean = state.setdefault("momentum_buffer", torch.zeros_like(grad))
        mean.lerp_(grad, 1 - group["momentum"])
        direction = orthogonalise(self._ranks.whole(grad.lerp(mean, group["momentum"])))
        height, width = matrix.shape
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        step = self._ranks.part(direction, matrix)
        matrix.add_(step, alpha=-group["lr"] * max(1.0, height / width) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """float32 [M, N] with the singular vectors of `matrix` and singular values of about 1 (between
    0.7 and 1.2, but for vanishing ones), by five quintic Newton-Schulz iterations."""
    dtype = torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=TINY)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(torch.float32)
