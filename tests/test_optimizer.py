"""The optimizer: its schedule, Muon's orthogonal steps, restored moments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from musicrl.optimizer import Optimizer, choose_parts
from musicrl.update_config import UpdateConfig


def optimizer_of(module: nn.Module, **settings: Any) -> Optimizer:
    return Optimizer(module, UpdateConfig(**settings).policy_optimizer)


def test_learning_rates_rise_then_fall_to_a_tenth() -> None:
    optimizer = optimizer_of(nn.Linear(1, 1), learning_rate=0.4, warmup_steps=2, decay_steps=4)
    rates = []
    for step in range(6):
        optimizer.num_steps = step
        rates.append(optimizer.rates["learning_rate"])
    # rise: 1/2, 1, 1, 1, 1, 1; fall: 1, .775, .55, .325, .1, .1
    assert rates == pytest.approx([0.2, 0.31, 0.22, 0.13, 0.04, 0.04])


def test_muon_moves_every_direction_of_a_matrix_alike() -> None:
    """Singular values of the step: near the learning rate, for a gradient whose own differ a
    hundredfold; the bias, no matrix, gets Adam's step."""
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    bias = layer.bias.detach().clone()
    optimizer = optimizer_of(layer, learning_rate=0.1, muon_learning_rate=0.01)
    gradient = torch.diag_embed(torch.tensor([1.0, 0.3, 0.01]))
    (layer.weight[:, :3] * gradient).sum().backward()
    layer.bias.sum().backward()
    optimizer.step(0.0)
    step = before - layer.weight.detach()
    sizes = torch.linalg.svdvals(step)
    assert bool(((sizes > 0.005) & (sizes < 0.015)).all())
    assert bool((step[:, :3].diagonal() > 0).all())
    torch.testing.assert_close(bias - layer.bias.detach(), torch.full((3,), 0.1))


def test_without_a_rate_of_its_own_muon_steps_nothing() -> None:
    layer = nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    optimizer = optimizer_of(layer, learning_rate=0.1)
    layer(torch.tensor([[3.0, -1.0]])).sum().backward()
    optimizer.step(0.0)
    torch.testing.assert_close(
        before - layer.weight.detach(), torch.tensor([[0.1, -0.1], [0.1, -0.1]])
    )


def test_a_gradient_that_is_not_finite_leaves_every_weight() -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    optimizer = optimizer_of(layer, muon_learning_rate=0.01)
    layer(torch.full((1, 2), torch.inf)).sum().backward()
    assert optimizer.step(0.0) is None
    assert torch.equal(layer.weight, before)
    assert optimizer.num_steps == 0
    assert layer.weight.grad is None


def test_without_chosen_parts_what_was_held_stays_held() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    choose_parts(layer, ())
    assert [p.requires_grad for p in layer.parameters()] == [True, False]
    choose_parts(layer, ("bias",))
    assert [p.requires_grad for p in layer.parameters()] == [False, True]
