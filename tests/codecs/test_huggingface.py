"""EnCodec and DAC of random weights behind the codec protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, T5Config

from musicrl.codecs.base import Codec
from musicrl.codecs.huggingface import HuggingFaceCodec


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "dac":
        return DacModel(
            DacConfig(
                encoder_hidden_size=4,
                decoder_hidden_size=16,
                downsampling_ratios=[2, 4],
                upsampling_ratios=[4, 2],
                n_codebooks=3,
                codebook_size=16,
                codebook_dim=4,
                sampling_rate=800,
            )
        ).eval()
    model = EncodecModel(
        EncodecConfig(
            sampling_rate=800,
            target_bandwidths=[1.6],
            upsampling_ratios=[4, 2],
            num_filters=2,
            hidden_size=8,
            codebook_size=16,
            codebook_dim=8,
            num_lstm_layers=1,
        )
    ).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    return model


@pytest.mark.parametrize(("kind", "levels"), [("encodec", 4), ("dac", 3)])
def test_it_is_the_model_behind_the_protocol(kind: str, levels: int, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    codec: Codec = HuggingFaceCodec.from_folder(tmp_path)
    assert (codec.sample_rate, codec.frame_size, codec.frame_rate) == (800, 8, 100.0)
    assert (codec.num_codebooks, codec.vocab_size) == (levels, 16)
    audio = torch.rand(2, 160) * 2 - 1
    codes = codec.encode(audio)
    assert codes.shape == (2, levels, 20)
    assert codes.dtype == torch.int64
    assert len(codes.unique()) > 2
    found = codec.decode(codes)
    assert found.shape == audio.shape
    with torch.no_grad():
        if kind == "encodec":
            wanted = model.decode(codes[None], [None]).audio_values[:, 0]
        else:
            wanted = model(audio[:, None]).audio_values
    torch.testing.assert_close(found, wanted[:, : found.shape[1]].clamp(-1, 1))
    assert codec.decode(codes[:, :2]).shape == audio.shape
    assert not torch.equal(codec.decode(codes[:, :2]), found)


def test_what_it_cannot_serve_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no codec that can be read"):
        HuggingFaceCodec.from_folder(tmp_path)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        HuggingFaceCodec.from_folder(tmp_path)
    stereo = EncodecConfig(**(make("encodec").config.to_dict() | {"audio_channels": 2}))
    with pytest.raises(ValueError, match="an EnCodec with audio_channels 2 is not served"):
        HuggingFaceCodec(EncodecModel(stereo))
    codec = HuggingFaceCodec(make("dac"))
    with pytest.raises(ValueError, match="audio of 12 samples is not a multiple of 8"):
        codec.encode(torch.zeros(1, 12))
