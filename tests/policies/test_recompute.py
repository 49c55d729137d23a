"""Gradient checkpointing and bfloat16: the same gradients, and sums and weights in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from musicrl.policies.config import MusicLMConfig
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.musiclm import MusicLM
from musicrl.policies.recompute import recompute
from musicrl.policies.value import make_value_network


def delayed() -> DelayedLM:
    torch.manual_seed(0)
    return DelayedLM(
        DelayedConfig(
            vocab=7,
            num_codebooks=2,
            num_steps=24,
            condition_levels=2,
            condition_vocab=4,
            width=16,
            num_layers=6,
            num_heads=2,
            num_kv_heads=2,
            mlp_width=64,
        )
    )


def musiclm() -> MusicLM:
    torch.manual_seed(0)
    return MusicLM(
        MusicLMConfig(
            semantic_vocab=7,
            coarse_vocab=7,
            coarse_levels=1,
            codec_frames_per_step=1,
            num_steps=24,
            condition_levels=2,
            condition_vocab=4,
            width=16,
            num_layers=6,
            num_heads=2,
            num_kv_heads=2,
            depth_width=8,
            depth_layers=2,
            depth_heads=2,
        )
    )


def value() -> nn.Module:
    found = make_value_network(delayed())
    nn.init.normal_(found.head.weight)
    return found


MAKERS = [delayed, musiclm, value]


def gradients(model: nn.Module, *, precision: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    tokens, conditions = torch.randint(7, (2, 24, 2)), torch.randint(4, (2, 2))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = model(tokens, conditions)
    assert out.dtype == torch.float32
    out[torch.isfinite(out)].square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_layers_that_run_again_give_the_same_gradients(
    make: Callable[[], nn.Module], precision: torch.dtype
) -> None:
    model = make()
    kept = gradients(model, precision=precision)
    recompute(model)
    again = gradients(model, precision=precision)
    assert kept.keys() == again.keys() == dict(model.named_parameters()).keys()
    for name, gradient in kept.items():
        assert gradient.any(), name
        assert torch.equal(again[name], gradient), name


@pytest.mark.parametrize("make", MAKERS)
def test_layers_that_run_again_keep_less(make: Callable[[], nn.Module]) -> None:
    """Numbers that the forward pass leaves for the backward pass, parameters aside."""

    def kept(model: nn.Module) -> int:
        own = {parameter.data_ptr() for parameter in model.parameters()}
        sizes = dict[int, int]()

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in own:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(torch.zeros(2, 24, 2, dtype=torch.int64), torch.zeros(2, 2).long())
        assert out.requires_grad
        return sum(sizes.values())

    model = make()
    before = kept(model)
    recompute(model)
    assert kept(model) < 0.5 * before


def test_bfloat16_rounds_products_alone() -> None:
    """Weights and their gradients are float32, and logits are made from whole hidden states."""
    model = delayed()
    whole, rounded = gradients(model), gradients(model, precision=torch.bfloat16)
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        off = (gradient - whole[name]).norm() / whole[name].norm()
        assert 0 < off < 0.05, name
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(torch.zeros(1, 24, 2).long(), torch.zeros(1, 2).long())
        logits = model(torch.zeros(1, 24, 2).long(), torch.zeros(1, 2).long())
    assert hidden.dtype == torch.float32
    expected = model.head @ hidden[0, 1]
    torch.testing.assert_close(logits[0, 1, :, :-1], expected)
