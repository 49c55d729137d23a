"""Muon beside torch's own, and what its orthogonalisation does to singular values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from musicrl.muon import Muon, orthogonalise

SHAPES = [(8, 8), (24, 8), (8, 24), (1, 5)]


def matrix(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_directions_stay_and_their_lengths_become_one(shape: tuple[int, int]) -> None:
    before = torch.linalg.svd(matrix(shape), full_matrices=False)
    after = orthogonalise(matrix(shape))
    turned = before.U.T @ after @ before.Vh.T
    lengths = turned.diagonal()
    assert (lengths > 0.65).all()
    assert (lengths < 1.25).all()
    torch.testing.assert_close(turned, torch.diag(lengths), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_steps_as_torch_does_but_for_bfloat16(shape: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(matrix(shape)) for _ in range(2))
    mine = Muon([{"params": [ours]}], momentum=0.9, weight_decay=0.1)
    other = torch.optim.Muon([theirs], momentum=0.9, weight_decay=0.1)
    for seed in range(1, 6):
        for parameter, optimizer in ((ours, mine), (theirs, other)):
            optimizer.param_groups[0]["lr"] = 0.1 / seed
            parameter.grad = matrix(shape, seed)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
    states = [o.state_dict()["state"][0]["momentum_buffer"] for o in (mine, other)]
    torch.testing.assert_close(*states)


def test_a_matrix_without_a_gradient_stays() -> None:
    still, moved = (nn.Parameter(matrix((4, 4))) for _ in range(2))
    moved.grad = torch.ones(4, 4)
    optimizer = Muon([{"params": [still, moved], "lr": 0.1}], momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(still, matrix((4, 4)))
    assert not torch.equal(moved, matrix((4, 4)))
