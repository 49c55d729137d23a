"""The joint embedder: geometry, text hashing, windows and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from musicrl.embedders.frontend import mel_filters
from musicrl.embedders.mulan import MuLan, MuLanConfig
from musicrl.embedders.text import split_words, word_grams

SMALL = MuLanConfig(
    width=16,
    num_blocks=2,
    text_width=16,
    text_layers=1,
    num_buckets=64,
    embedding_size=8,
    condition_levels=3,
    condition_vocab=4,
)


@pytest.fixture
def model() -> MuLan:
    torch.manual_seed(0)
    model = MuLan(SMALL).eval()
    model.audio_mean.normal_(std=0.3)
    model.text_mean.normal_(std=0.3)
    model.quantizer.codebooks.normal_()
    return model


def test_outputs_are_unit_vectors_that_differ(model: MuLan) -> None:
    text = model.embed_text(["a slow jig", "drums", ""])
    audio = model.embed_audio(0.1 * torch.randn(3, 32_000))
    for vectors in (text, audio):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
        assert (vectors[0] - vectors[1]).norm() > 1e-3


def test_a_text_embeds_alike_in_any_batch(model: MuLan) -> None:
    texts = ["one", "a much longer text of several words", "flute, solo"]
    together = model.embed_text(texts)
    for text, vector in zip(texts, together, strict=True):
        torch.testing.assert_close(model.embed_text([text])[0], vector, atol=1e-5, rtol=0)


def test_words_are_case_blind_and_share_grams_with_their_kin() -> None:
    assert split_words("A Slow, sad-TUNE!") == ["a", "slow", "sad", "tune"]
    assert split_words("!?") == [""]
    assert len(split_words("word " * 100)) == 40
    shared = set(word_grams("trumpet", 2048)) & set(word_grams("trumpets", 2048))
    assert len(shared) >= 5


def test_mel_filters_sum_to_one_and_climb() -> None:
    filters = mel_filters(16_000, 1024, 40)
    torch.testing.assert_close(filters.sum(1), torch.ones(40))
    centres = filters @ torch.arange(513.0)
    assert bool((centres.diff() > 0).all())


def test_windows_of_a_clip_are_those_of_the_strided_audio(model: MuLan) -> None:
    """Away from the padded edges a window of mel equals the mel of a window."""
    audio = 0.1 * torch.randn(1, 96_000)
    windows = model.embed_windows(audio, stride_seconds=2.0)
    assert windows.shape == (1, 3, 8)
    mel = model.front(audio)[:, :, 100:200]
    torch.testing.assert_close(windows[:, 1], model.embed_mel(mel))
    mean = F.normalize(model.embed_windows(audio).mean(1), dim=-1)
    torch.testing.assert_close(model.embed_clip(audio), mean)


def test_conditions_are_the_codes_of_the_text_embedding(model: MuLan) -> None:
    codes = model.condition(["harp", "loud organ"])
    assert codes.shape == (2, 3)
    assert torch.equal(codes, model.quantizer.encode(model.embed_text(["harp", "loud organ"])))


def test_files_round_trip_and_know_their_kind(model: MuLan, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    model.save(path, kind="judge", accuracy=0.5)
    loaded = MuLan.from_file(path, kind="judge")
    torch.testing.assert_close(
        loaded.embed_text(["organ"]), model.embed_text(["organ"]), atol=2e-3, rtol=0
    )
    with pytest.raises(ValueError, match=r"judge.safetensors holds 'judge' weights"):
        MuLan.from_file(path)
