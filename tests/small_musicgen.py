"""A random MusicGen and random CLAPs of the Hub's form, small enough to run in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from musicrl.codecs.huggingface import HuggingFaceCodec

VOCAB, RATE, HOP, WINDOW = 16, 16000, 320, 0.4
WORDS = ("<s>", "<pad>", "</s>", "<unk>", "slow", "fast", "piano", "flute")


def tokenizer() -> PreTrainedTokenizerFast:
    words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", model_max_length=20
    )


def musicgen(folder: Path, *, channels: int = 1) -> None:
    """Two codebooks in each channel."""
    torch.manual_seed(0)
    text = T5Config(vocab_size=12, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    codec = EncodecConfig(
        sampling_rate=RATE,
        target_bandwidths=[RATE / HOP * 4 * 2 / 1000],
        upsampling_ratios=[8, 8, 5],
        num_filters=4,
        hidden_size=8,
        codebook_size=VOCAB,
        codebook_dim=8,
        num_lstm_layers=1,
        chunk_length_s=None,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        ffn_dim=48,
        num_codebooks=2 * channels,
        audio_channels=channels,
        pad_token_id=VOCAB,
        bos_token_id=VOCAB,
    )
    config = MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    model = MusicgenForConditionalGeneration(config)
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")


def clap(folder: Path, sounds: Tensor, *, seed: int = 1) -> Any:
    """Its first layer is told the levels of `sounds` [B, N], as training would have."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 24,
    }
    audio = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
    }
    model = ClapModel(
        ClapConfig(text_config=text, audio_config=audio, projection_dim=16, initializer_factor=20.0)
    ).eval()
    _hear(model.audio_model.audio_encoder.batch_norm, sounds)
    model.save_pretrained(folder)
    extractor().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def _hear(norm: Any, sounds: Tensor) -> None:
    mels = extractor()(list(sounds.numpy()), sampling_rate=RATE)["input_features"]
    levels = torch.tensor(np.array(mels)).flatten(0, 2)
    norm.running_mean.copy_(levels.mean(0))
    norm.running_var.copy_(levels.var(0))


def extractor() -> ClapFeatureExtractor:
    return ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=160,
        max_length_s=WINDOW,
        fft_window_size=512,
        frequency_min=20,
        frequency_max=RATE // 2,
        truncation="rand_trunc",
    )


def sounds_of(codec: HuggingFaceCodec) -> Tensor:
    """Audio float32 [32, N] of random codes."""
    torch.manual_seed(2)
    return codec.decode(torch.randint(VOCAB, (32, 2, round(WINDOW * codec.frame_rate))))


def write_world(folder: Path, *, channels: int = 1) -> None:
    """A MusicGen world: 4 prompts to train on, 16 held out; `judge` is a CLAP that nothing names."""
    musicgen(folder / "musicgen", channels=channels)
    sounds = sounds_of(HuggingFaceCodec.from_musicgen(folder / "musicgen"))
    clap(folder / "clap", sounds)
    clap(folder / "judge", sounds, seed=5)
    (folder / "world.yaml").write_text(
        f"family: musicgen\nmodel: path:musicgen\nembedder: path:clap\n"
        f"clip_seconds: {WINDOW}\ntext_size: 4\n"
    )
    texts = ["slow piano", "fast piano", "slow flute", "fast flute"]
    rows = [("train", text) for text in texts] + [("heldout", text) for text in texts * 4]
    table = {
        "id": [str(number) for number in range(len(rows))],
        "text": [text for _, text in rows],
        "split": [split for split, _ in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "prompts.parquet")
