"""The value network of the delayed family: where it starts and what it may see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.text import TextStates
from musicrl.policies.value import DelayedValue, make_value_network

MUSICGEN = DelayedConfig(
    vocab=7,
    num_codebooks=3,
    num_steps=5,
    condition_levels=2,
    condition_vocab=4,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=24,
)
LLAMA = replace(
    MUSICGEN,
    num_codebooks=1,
    norm="rms",
    mlp="swiglu",
    positions="rotary",
    num_kv_heads=1,
    has_cross=False,
)


def make_value(config: DelayedConfig) -> tuple[DelayedLM, DelayedValue]:
    torch.manual_seed(0)
    policy = DelayedLM(config)
    value = make_value_network(policy)
    assert isinstance(value, DelayedValue)
    return policy, value


def make_batch(config: DelayedConfig) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, config.vocab, (1, config.num_steps, config.num_codebooks))
    return tokens, torch.randint(0, config.condition_vocab, (1, 2))


@pytest.mark.parametrize("config", [MUSICGEN, LLAMA])
def test_it_starts_at_zero_from_a_copy_of_the_policy(config: DelayedConfig) -> None:
    policy, value = make_value(config)
    assert torch.equal(value(*make_batch(config)), torch.zeros(1, 5, config.num_codebooks))
    own = policy.state_dict()
    del own["head"]
    copied = value.trunk.state_dict()
    assert copied.keys() == own.keys()
    for name, tensor in own.items():
        assert torch.equal(copied[name], tensor)
        assert copied[name].data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("config", [MUSICGEN, LLAMA])
def test_a_value_sees_exactly_the_steps_before_its_own(config: DelayedConfig) -> None:
    _, value = make_value(config)
    nn.init.normal_(value.head.weight)
    tokens, conditions = make_batch(config)
    before = value(tokens, conditions)
    for step in range(config.num_steps):
        for stream in range(config.num_codebooks):
            changed = tokens.clone()
            changed[0, step, stream] = (changed[0, step, stream] + 1) % config.vocab
            moved = (value(changed, conditions) - before).abs()[0] > 1e-7
            assert not moved[: step + 1].any()
            assert moved[step + 1 :].all()
    other = value(tokens, (conditions + 1) % config.condition_vocab)
    assert ((other - before).abs() > 1e-6).all()


class Encoder(nn.Module):
    """An embedding in the form of a transformers text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Encoder:
        assert input_ids.shape == attention_mask.shape
        self.last_hidden_state = self.table(input_ids)
        return self


def test_it_shares_the_text_encoder_and_learns_all_else() -> None:
    policy = DelayedLM(MUSICGEN, TextStates(Encoder(), text_width=8, width=16))
    value = make_value_network(policy.requires_grad_(False))
    assert isinstance(value, DelayedValue)
    assert value.trunk.text is not None
    assert policy.text is not None
    assert value.trunk.text.frozen is policy.text.frozen
    nn.init.normal_(value.head.weight)
    value(*make_batch(MUSICGEN)).square().sum().backward()
    for name, parameter in value.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert not any(parameter.requires_grad for parameter in policy.parameters())
