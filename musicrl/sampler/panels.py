"""Weights in the order in which `products.c` reads them: panels of 2 * lanes outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def panels(weight: Tensor, lanes: int) -> Tensor:
    """The weight [O, I] as panels [P, I, lanes, 2]: a word holds outputs j and j + lanes."""
    outputs, inputs = weight.shape
    whole = F.pad(weight, (0, 0, 0, -outputs % (2 * lanes)))
    return whole.view(-1, 2, lanes, inputs).permute(0, 3, 2, 1).contiguous()


def columns(weight: Tensor, lanes: int) -> Tensor:
    """The weight [O, I] as panels [P, I, 2 * lanes] of neighbouring outputs."""
    outputs, inputs = weight.shape
    whole = F.pad(weight, (0, 0, 0, -outputs % (2 * lanes)))
    return whole.view(-1, 2 * lanes, inputs).transpose(1, 2).contiguous()


def halves(weight: Tensor, lanes: int) -> Tensor:
    """The weight [2 F, I] as panels [P, I, lanes, 2]: a word holds output j of either half."""
    _, inputs = weight.shape
    parts = [F.pad(part, (0, 0, 0, -len(part) % lanes)) for part in weight.chunk(2)]
    first, second = (part.view(-1, lanes, inputs).permute(0, 2, 1) for part in parts)
    return torch.stack([first, second], dim=-1).contiguous()
