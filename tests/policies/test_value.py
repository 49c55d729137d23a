"""The value network: where it starts and what it may see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.policies.value import ValueNetwork

CONFIG = MusicLMConfig(
    semantic_vocab=5,
    coarse_vocab=7,
    coarse_levels=1,
    num_steps=3,
    condition_levels=2,
    condition_vocab=4,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    depth_width=8,
    depth_layers=2,
    depth_heads=2,
)


def make_value(seed: int = 0) -> tuple[MusicLM, ValueNetwork]:
    torch.manual_seed(seed)
    policy = MusicLM(CONFIG)
    return policy, ValueNetwork.from_policy(policy)


def make_batch(B: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.stack([torch.randint(0, v, (B, 3)) for v in CONFIG.layout.vocab_sizes], dim=-1)
    return tokens, torch.randint(0, CONFIG.condition_vocab, (B, 2))


def test_starts_at_zero_from_the_trunk_of_the_policy() -> None:
    policy, value = make_value()
    assert torch.equal(value(*make_batch()), torch.zeros(2, 3, 3))
    for name, tensor in policy.trunk.state_dict().items():
        own = value.trunk.state_dict()[name]
        assert torch.equal(own, tensor)
        assert own.data_ptr() != tensor.data_ptr()


def test_a_frozen_policy_gives_a_trainable_value_network() -> None:
    policy, _ = make_value()
    value = ValueNetwork.from_policy(policy.requires_grad_(False))
    assert all(parameter.requires_grad for parameter in value.parameters())
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def test_value_sees_exactly_what_lies_before_its_token() -> None:
    _, value = make_value()
    nn.init.normal_(value.head.weight)
    tokens, conditions = make_batch(1)
    before = value(tokens, conditions).flatten()
    K = tokens.shape[2]
    for cell in range(tokens[0].numel()):
        s, k = divmod(cell, K)
        changed = tokens.clone()
        changed[0, s, k] = (tokens[0, s, k] + 1) % CONFIG.layout.vocab_sizes[k]
        after = value(changed, conditions).flatten()
        moved = (after - before).abs() > 1e-7
        assert not moved[: cell + 1].any(), f"value before cell {cell} saw it"
        assert moved[cell + 1 :].all(), f"a value after cell {cell} ignores it"


def test_value_depends_on_the_condition() -> None:
    _, value = make_value()
    nn.init.normal_(value.head.weight)
    tokens, conditions = make_batch(1)
    other = value(tokens, (conditions + 1) % CONFIG.condition_vocab)
    assert ((other - value(tokens, conditions)).abs() > 1e-5).all()


def test_unknown_family_is_refused() -> None:
    with pytest.raises(TypeError, match="policy Linear"):
        ValueNetwork.from_policy(nn.Linear(1, 1))


def test_it_lies_where_the_policy_does() -> None:
    value = ValueNetwork.from_policy(MusicLM(CONFIG).to("meta"))
    assert {tensor.device.type for tensor in value.state_dict().values()} == {"meta"}
