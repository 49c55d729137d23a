"""The preference model: where it starts, what it sees, and the loss it learns by."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from musicrl.policies.musiclm import MusicLM
from musicrl.policies.preference import PreferenceModel, bradley_terry
from tests.policies.test_value import CONFIG, make_batch


def make_model(seed: int = 0) -> tuple[MusicLM, PreferenceModel]:
    torch.manual_seed(seed)
    policy = MusicLM(CONFIG)
    return policy, PreferenceModel.from_policy(policy)


def test_the_loss_by_hand() -> None:
    """Odds of 3 for the preferred clip, then of 1/3: -log(3/4) and -log(1/4)."""
    margin = torch.tensor([math.log(3), math.log(3)])
    loss = bradley_terry(margin, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    with pytest.raises(ValueError, match="margins"):
        bradley_terry(margin, torch.tensor([True]))


def test_starts_at_zero_from_the_layers_of_the_policy() -> None:
    policy, model = make_model()
    assert torch.equal(model(*make_batch()), torch.zeros(2))
    theirs = policy.trunk.state_dict()
    for name, tensor in model.trunk.state_dict().items():
        assert torch.equal(tensor, theirs[name])
        assert tensor.data_ptr() != theirs[name].data_ptr()
    first = PreferenceModel.from_policy(policy, layers=1)
    assert {name.split(".")[1] for name in first.trunk.state_dict() if "blocks" in name} == {"0"}
    for layers in (0, 3):
        with pytest.raises(ValueError, match=f"layers must be 1 to 2, the policy's, got {layers}"):
            PreferenceModel.from_policy(policy, layers=layers)
    with pytest.raises(TypeError, match="Linear"):
        PreferenceModel.from_policy(nn.Linear(1, 1))


def test_a_score_sees_every_token_and_the_condition() -> None:
    _, model = make_model()
    nn.init.normal_(model.head.weight)
    tokens, conditions = make_batch(1)
    score = model(tokens, conditions)
    for cell in range(tokens[0].numel()):
        s, k = divmod(cell, tokens.shape[2])
        changed = tokens.clone()
        changed[0, s, k] = (tokens[0, s, k] + 1) % CONFIG.layout.vocab_sizes[k]
        assert (model(changed, conditions) - score).abs() > 1e-6, f"cell {cell} is not seen"
    assert not torch.allclose(model(tokens, torch.full_like(conditions, -1)), score)
    assert not torch.allclose(model(tokens[:, :2], conditions), score)


def test_scores_survive_the_file(tmp_path: Path) -> None:
    _, model = make_model()
    nn.init.normal_(model.head.weight)
    model.save(tmp_path / "preference.safetensors", {"raters": "simulated"})
    again, facts = PreferenceModel.from_file(tmp_path / "preference.safetensors")
    assert facts == {"raters": "simulated"}
    batch = make_batch()
    torch.testing.assert_close(again(*batch), model(*batch), atol=2e-2, rtol=0)
