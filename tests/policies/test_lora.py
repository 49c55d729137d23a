"""Adapters: what learns, what is published, and the base that they leave where it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.flat import apply, checksum, flatten
from musicrl.policies.lora import Adapter, Base, LoraConfig, adapt, merged
from musicrl.policies.recompute import recompute

CONFIG = DelayedConfig(
    vocab=7,
    num_codebooks=2,
    num_steps=6,
    condition_levels=2,
    condition_vocab=4,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=24,
)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("qkv", "cross_kv"))


def make_policies(config: LoraConfig = LORA) -> tuple[DelayedLM, DelayedLM]:
    """One, and an adapted copy of it."""
    torch.manual_seed(0)
    plain = DelayedLM(CONFIG)
    adapted = copy.deepcopy(plain)
    adapt(adapted, config)
    return plain, adapted


def make_batch() -> tuple[Tensor, Tensor]:
    return torch.randint(7, (2, 6, 2)), torch.randint(4, (2, 2))


def learn(policy: nn.Module) -> None:
    """Move all that learns."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_adapters_alone_learn_and_start_as_nothing() -> None:
    plain, adapted = make_policies()
    batch = make_batch()
    assert torch.equal(adapted(*batch), plain(*batch))
    learning = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert learning == {
        f"layers.{layer}.{target}.parametrizations.weight.0.{part}"
        for layer in (0, 1)
        for target in LORA.targets
        for part in ("down", "up")
    }
    _, whole = make_policies(LoraConfig(rank=1))
    wanted = sum(isinstance(part, nn.Linear) for part in plain.modules())
    assert sum(isinstance(part, Adapter) for part in whole.modules()) == wanted == 14


def test_merged_weights_are_those_that_it_computes_with() -> None:
    plain, adapted = make_policies()
    learn(adapted)
    batch = make_batch()
    parts = adapted.layers[0].qkv.parametrizations.weight  # type: ignore[union-attr]
    down, up = (getattr(parts[0], name) for name in ("down", "up"))  # type: ignore[index]
    expected = plain.state_dict()["layers.0.qkv.weight"] + 2.0 * up @ down
    torch.testing.assert_close(merged(adapted)["layers.0.qkv.weight"], expected)
    apply(plain, flatten(adapted, 1))
    assert torch.equal(plain(*batch), adapted(*batch))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(*batch), adapted(*batch))


def test_adapters_alone_are_published_and_make_the_policy_of_every_base() -> None:
    plain, adapted = make_policies()
    batch, bases = make_batch(), dict[str, Tensor]()
    size = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    for version in range(3):
        learn(adapted)
        weights = flatten(adapted, version)
        assert weights.flat.size == size < 0.4 * sum(p.numel() for p in plain.parameters())
        assert weights.scale == 2.0
        apply(plain, weights, bases=bases)
        assert torch.equal(plain(*batch), adapted(*batch))
        for name, tensor in merged(adapted).items():
            assert torch.equal(plain.state_dict()[name], tensor), name


def test_adapters_of_another_policy_are_refused_and_change_nothing() -> None:
    plain, adapted = make_policies()
    learn(adapted)
    weights = flatten(adapted, 0)
    for (old, new), sentence in {
        ("layers.1.", "layers.7."): "adapters of an unknown layer 'layers.7.qkv'",
        ("layers.1.qkv", "layers.1.out"): r"adapters of layer 'layers.1.out' make 48 x 16",
    }.items():
        index = tuple((name.replace(old, new), shape) for name, shape in weights.index)
        wrong = replace(weights, index=index)
        before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        with pytest.raises(ValueError, match=sentence):
            apply(plain, replace(wrong, checksum=checksum(wrong)))
        assert all(torch.equal(before[name], t) for name, t in plain.state_dict().items())


def test_the_base_is_the_policy_without_them() -> None:
    plain, adapted = make_policies()
    base = Base(adapted).eval().requires_grad_(False)
    learn(adapted)
    batch = make_batch()
    assert torch.equal(base(*batch), plain(*batch))
    assert flatten(base, 0).checksum == flatten(plain, 0).checksum
    assert not torch.equal(adapted(*batch), plain(*batch))
    assert any(parameter.requires_grad for parameter in adapted.parameters())
    assert not list(base.parameters())


def test_gradients_are_those_of_the_whole_weights() -> None:
    """dL/d up = scale x dL/d weight @ down^T; and layers that run again change nothing, though the
    base was asked in between."""
    plain, adapted = make_policies()
    learn(adapted)
    apply(plain, flatten(adapted, 1))
    batch, base = make_batch(), Base(adapted)
    recompute(adapted)
    for policy in (plain, adapted):
        out = policy(*batch)
        with torch.no_grad():
            base(*batch)
        out[torch.isfinite(out)].square().sum().backward()
    whole = plain.layers[1].cross_kv.weight.grad  # type: ignore[union-attr]
    adapter = adapted.layers[1].cross_kv.parametrizations.weight[0]  # type: ignore[union-attr,index]
    assert isinstance(whole, Tensor)
    assert isinstance(adapter, Adapter)
    assert adapter.up.grad is not None
    torch.testing.assert_close(adapter.up.grad, 2.0 * whole @ adapter.down.T)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rank": -1}, "lora: rank must be 0 or more, got -1"),
        ({"alpha": 1.0}, "lora: alpha and targets are read only with a rank above 0"),
        ({"targets": ("qkv",)}, "lora: alpha and targets are read only with a rank above 0"),
        ({"rank": 1, "alpha": 0.0}, "lora: alpha must be above 0, got 0.0"),
        (
            {"rank": 1, "targets": ("query",)},
            "model.lora.targets: the policy has no layer 'query', it has qkv, out",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_policies(LoraConfig(**values))  # type: ignore[arg-type]
