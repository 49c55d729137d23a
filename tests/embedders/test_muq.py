"""MuQ-MuLan of random weights, against what the package `muq` 0.1.0 makes of the same."""

from __future__ import annotations

import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import XLMRobertaConfig

from musicrl.embedders.muq import PREFIX, MuqMulan, Towers
from musicrl.embedders.table import load_pretrained
from musicrl.rewards.text import TextAdherence
from musicrl.types import Clips, Prompt
from tests.small_musicgen import tokenizer

RATE = 24000
AUDIO = [
    [0.561324, 0.219407, -0.420602, 0.114695, 0.333739, 0.453554, -0.157834, 0.323588],
    [0.545798, 0.180510, -0.389999, 0.198013, 0.269420, 0.521077, -0.215482, 0.296095],
]
AUDIO_OF_LAYER_1 = [
    [0.503883, -0.275687, -0.035174, 0.131305, 0.069719, 0.573686, -0.009044, 0.563527],
    [0.552895, -0.180606, -0.097872, 0.143395, 0.104353, 0.556451, -0.040078, 0.556250],
]
TEXT = [
    [-0.018095, 0.393244, -0.527203, 0.623747, -0.085669, -0.158579, -0.366721, 0.105155],
    [-0.050247, 0.373271, -0.619488, 0.505858, -0.116148, -0.122778, -0.435206, 0.022728],
]
"""Of `sounds()` and of the texts "slow piano" and "fast flute piano", by muq 0.1.0 under transformers
4.49 and torch 2.13, with `weights` of the package's own names."""
MIXER = {"heads": 2, "dim_head": 4, "attn_dropout": 0.0, "ff_dropout": 0.0, "ff_mult": 4}
MULAN: dict[str, Any] = {
    "mulan": {"sr": RATE, "clip_secs": 1, "dim_latent": 8},
    "audio_model": {"name": "somebody/muq", "model_dim": 16, "use_layer_idx": -1},
    "text_model": {"name": "xlm-roberta", "model_dim": 12, "use_layer_idx": -1},
    "audio_transformer": {"dim": 10, "tf_depth": 2, **MIXER},
    "text_transformer": {"dim": 10, "tf_depth": 1, "max_seq_len": 64, **MIXER},
}
CONFORMER = {
    "conv_depthwise_kernel_size": 5,
    "hidden_act": "swish",
    "intermediate_size": 24,
    "layerdrop": 0.0,
    "num_attention_heads": 2,
    "num_conv_pos_embedding_groups": 2,
    "num_conv_pos_embeddings": 8,
    "position_embeddings_type": "rotary",
}
MUQ: dict[str, Any] = {
    "label_rate": 25,
    "features": ["melspec_2048"],
    "hop_length": 240,
    "n_mels": 128,
    "conv_dim": 6,
    "encoder_dim": 16,
    "encoder_depth": 2,
    "stat": {"melspec_2048_mean": 6.7, "melspec_2048_std": 18.4},
    "w2v2_config": CONFORMER,
}
WORDS = XLMRobertaConfig(
    vocab_size=12,
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=40,
    type_vocab_size=1,
)


def weights(name: str, shape: torch.Size) -> Tensor:
    """The same numbers for a tensor's name, whatever else a model holds."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return 0.5 + drawn if len(shape) < 2 else (drawn - 0.5) * 8 / drawn[0].numel() ** 0.5


def sounds() -> Tensor:
    """float32 [2, N]: a tone, and a rising one."""
    times = torch.arange(RATE)
    return torch.stack([torch.sin(times * 0.05), torch.sin(times**1.5 * 0.002)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As the package writes one, with the configurations of its parts inside."""
    for name, values in (("", MULAN), ("muq", MUQ), ("xlm-roberta", WORDS.to_dict())):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    tokenizer().save_pretrained(tmp_path / "xlm-roberta")
    with torch.device("meta"):
        own = Towers(MULAN, MUQ, WORDS).state_dict()
    tensors = {
        f"{PREFIX}{name}": weights(f"{PREFIX}{name}", tensor.shape)
        if tensor.is_floating_point()
        else torch.zeros((), dtype=torch.int64)
        for name, tensor in own.items()
        if not name.endswith("inv_freq")
    }
    tensors[f"{PREFIX}contrast.temperatures"] = torch.ones(1, 1, 1)  # of its training
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_it_embeds_as_the_package_does(folder: Path) -> None:
    model = MuqMulan.from_folder(folder)
    assert (model.sample_rate, model.window_seconds) == (RATE, 1.0)
    close = partial(torch.testing.assert_close, atol=2e-5, rtol=0.0)
    close(model.embed_audio(sounds()), torch.tensor(AUDIO))
    words = model.embed_text(["slow piano", "fast flute piano"])
    close(words, torch.tensor(TEXT))
    model.towers.audio.layer = 1
    found = model.embed_audio(sounds())
    close(found, torch.tensor(AUDIO_OF_LAYER_1))


def test_a_text_means_the_same_beside_a_longer_one(folder: Path) -> None:
    model = MuqMulan.from_folder(folder)
    alone = model.embed_text(["slow"])
    assert torch.equal(model.embed_text(["slow", "slow fast piano flute"])[:1], alone)
    assert model.embed_text(["slow " * 100]).shape == (1, 8)


def test_a_clip_is_the_mean_of_its_windows(folder: Path) -> None:
    model = load_pretrained(folder)
    first, second = sounds()
    whole = model.embed_clip(torch.cat([first, second])[None])
    mean = model.embed_audio(sounds()).mean(0, keepdim=True)
    torch.testing.assert_close(whole, mean / mean.norm())


def test_it_scores_adherence_to_a_text(folder: Path) -> None:
    model = load_pretrained(folder)
    clips = Clips(audio=sounds().numpy(), sample_rate=RATE)
    prompts = [Prompt(id="a", text="slow piano"), Prompt(id="b", text="fast flute piano")]
    wanted = (np.array(AUDIO) * np.array(TEXT)).sum(1)
    np.testing.assert_allclose(TextAdherence(model)(prompts, clips), wanted, atol=5e-5)


def _change(path: Path, name: str, value: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def test_what_is_not_whole_is_named(folder: Path) -> None:
    file, lost = folder / "model.safetensors", "mulan.audio.transformer.layers.1.0.to_q.weight"
    tensors = load_file(file)
    save_file(tensors | {lost: torch.zeros(3, 7)}, file)
    with pytest.raises(ValueError, match=rf"{file}: tensor '{lost}' has shape \(3, 7\), expected"):
        load_pretrained(folder)
    del tensors[lost]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"{file} lacks the tensor '{lost}'"):
        load_pretrained(folder)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=rf"{file}: pytorch_model\.bin is a pickle.*weights_only=True"
    ):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "name", "value", "sentence"),
    [
        ("muq/config.json", "label_rate", 75, "a MuQ of 75 states a second of"),
        ("config.json", "audio_model", {}, r"config\.json lacks the setting 'name'"),
        ("xlm-roberta/config.json", "model_type", "bert", "is 'bert', not 'xlm-roberta'"),
        (
            "config.json",
            "text_model",
            {"name": "nobody/nothing", "model_dim": 12},
            "hub:nobody/nothing is not in the local cache",
        ),
    ],
)
def test_what_is_not_served_is_refused(
    folder: Path, file: str, name: str, value: object, sentence: str
) -> None:
    _change(folder / file, name, value)
    with pytest.raises(ValueError, match=sentence):
        load_pretrained(folder)
