"""Adapters in the form of peft: its own library gives the same logits with them, and we with its."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MusicgenForConditionalGeneration

from musicrl.policies.lora import LoraConfig, adapt, merged, published
from musicrl.policies.musicgen import MusicGen
from musicrl.policies.peft import CONFIG, WEIGHTS, write_adapter
from musicrl.policies.text import pad
from tests.policies.test_musicgen import PROMPTS, STEPS, TEXT_SIZE, VOCAB, _inputs, _model

LORA = LoraConfig(rank=3, alpha=7.0)


def _load(folder: Path) -> MusicGen:
    return MusicGen.load(str(folder), num_steps=STEPS, text_size=TEXT_SIZE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    _model(2, 24).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> tuple[MusicGen, Path]:
    """A checkpoint with adapters that have learned on all its linear layers, and their folder."""
    model = _load(base)
    adapt(model.policy, LORA)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    found = published(model.policy)
    assert found is not None
    write_adapter(found[0], LORA, tmp_path, base=str(base))
    return model, tmp_path


@torch.no_grad()
def _logits(model: MusicGen, theirs: Any) -> tuple[Tensor, Tensor]:
    """Of one grid, ours and transformers', in cells that hold a frame."""
    K = model.policy.layout.num_streams
    codes = np.random.default_rng(0).integers(0, VOCAB, (len(PROMPTS), K, STEPS - K + 1))
    grid = torch.from_numpy(model.policy.layout.interleave(codes)).long()
    B, S, _ = grid.shape
    before = torch.cat([torch.full((B, 1, K), VOCAB), grid[:, :-1]], dim=1)
    ids = before.transpose(1, 2).reshape(B * K, S)
    wanted = theirs(**_inputs(), decoder_input_ids=ids).logits.view(B, K, S, -1)
    found = model.policy(grid, pad(PROMPTS, TEXT_SIZE)).transpose(1, 2)[..., :VOCAB]
    is_frame = grid.transpose(1, 2) != VOCAB
    return found[is_frame], wanted[is_frame]


def test_peft_gives_the_logits_of_our_adapters(base: Path, adapter: tuple[MusicGen, Path]) -> None:
    peft = pytest.importorskip("peft")
    model, folder = adapter
    plain = MusicgenForConditionalGeneration.from_pretrained(base).eval()
    before = _logits(model, plain)
    assert (before[0] - before[1]).abs().max() > 0.1
    theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
    torch.testing.assert_close(*_logits(model, theirs), atol=2e-5, rtol=1e-5)


def test_adapters_that_peft_made_are_merged(base: Path, tmp_path: Path) -> None:
    """Of some modules only, each with a first matrix of its own."""
    peft = pytest.importorskip("peft")
    plain = MusicgenForConditionalGeneration.from_pretrained(base)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "fc2"])
    config.exclude_modules = r"text_encoder\..*"
    theirs = peft.get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if ".lora_" in name:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    theirs.save_pretrained(tmp_path)
    model = _load(base)
    before = _logits(model, theirs)
    assert (before[0] - before[1]).abs().max() > 0.1
    model.load_policy(tmp_path)
    torch.testing.assert_close(*_logits(model, theirs), atol=2e-5, rtol=1e-5)


def test_what_is_written_is_read(base: Path, adapter: tuple[MusicGen, Path]) -> None:
    model, folder = adapter
    again = _load(base)
    again.load_policy(folder)
    for name, tensor in merged(model.policy).items():
        torch.testing.assert_close(again.policy.state_dict()[name], tensor)


QUERY = "base_model.model.decoder.model.decoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("settings", "tensors", "sentence"),
    [
        ({"use_dora": True}, {}, r"adapter_config\.json: use_dora True is not served, only False"),
        ({"rank_pattern": {"a": 2}}, {}, r"rank_pattern \{'a': 2\} is not served"),
        ({"peft_type": "IA3"}, {}, "peft_type 'IA3' is not served, only 'LORA'"),
        ({"r": 0}, {}, "r 0 and lora_alpha 7.0 are no rank and no scale"),
        ({}, {"other": torch.zeros(1)}, "tensor 'other' is no part of an adapter"),
        (
            {},
            {f"{QUERY}.lora_B.weight": torch.zeros(32, 4)},
            r"of \(32, 4\) and \(3, 32\)",
        ),
        (
            {},
            {f"{QUERY}.lora_B.weight": torch.zeros(30, 3)},
            r"adapters of 'decoder\.\S+q_proj\.weight' make \(30, 32\), not \(32, 32\)",
        ),
        (
            {},
            {"base_model.model.x.lora_A.weight": torch.zeros(3, 2)},
            r"lacks the tensor 'base_model\.model\.x\.lora_B\.weight'",
        ),
        (
            {},
            {
                "base_model.model.x.lora_A.weight": torch.zeros(3, 2),
                "base_model.model.x.lora_B.weight": torch.zeros(2, 3),
            },
            r"the decoder has no weight 'x\.weight' to adapt",
        ),
    ],
)
def test_adapters_that_are_not_served_are_named(
    base: Path,
    adapter: tuple[MusicGen, Path],
    settings: dict[str, object],
    tensors: dict[str, Tensor],
    sentence: str,
) -> None:
    folder, model = adapter[1], _load(base)
    begun = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    values = json.loads((folder / CONFIG).read_text()) | settings
    (folder / CONFIG).write_text(json.dumps(values))
    save_file(load_file(folder / WEIGHTS) | tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=sentence) as caught:
        model.load_policy(folder)
    assert str(folder) in str(caught.value)
    assert all(torch.equal(begun[k], v) for k, v in model.policy.state_dict().items())
