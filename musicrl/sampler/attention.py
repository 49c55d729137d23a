"""Reference attention of the sampler, in plain torch: one query position per sample.

A sample attends to the shared part of its prompt and to its own part under one softmax; the
prompt's keys and values are never copied per sample. Always available: faster backends are tested
against it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend_step(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, own_key: Tensor, own_value: Tensor
) -> Tensor:
    """Mix for queries [P*G, H, D]: prompt parts [P, Hkv, C, D], own parts [P*G, Hkv, s, D].

    Query heads h*R .. h*R + R-1 share the key-value head h, R = H / Hkv. Sums on the CPU are
    float64, as the learner's are.
    """
    dtype = query.dtype
    if query.device.type == "cpu":
        query, prompt_key, own_key = query.double(), prompt_key.double(), own_key.double()
        prompt_value, own_value = prompt_value.double(), own_value.double()
    B, H, D = query.shape
    P, Hkv, C, _ = prompt_key.shape
    G, R = B // P, H // Hkv
    query = query * (1 / math.sqrt(D))
    by_prompt = query.view(P, G, Hkv, R, D).transpose(1, 2).reshape(P * Hkv, G * R, D)
    to_prompt = torch.bmm(by_prompt, prompt_key.flatten(0, 1).mT).view(P, Hkv, G, R, C)
    to_own = torch.bmm(query.view(B * Hkv, R, D), own_key.flatten(0, 1).mT)
    scores = torch.cat([to_prompt.transpose(1, 2).reshape(B * Hkv, R, C), to_own], dim=2)
    weights = scores.softmax(dim=2)
    on_prompt = weights[..., :C].view(P, G, Hkv, R, C).transpose(1, 2).reshape(P * Hkv, G * R, C)
    of_prompt = torch.bmm(on_prompt, prompt_value.flatten(0, 1)).view(P, Hkv, G, R, D)
    of_own = torch.bmm(weights[..., C:], own_value.flatten(0, 1)).view(P, G, Hkv, R, D)
    return (of_own + of_prompt.transpose(1, 2)).view(B, H, D).to(dtype)
