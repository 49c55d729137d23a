"""A stereo MusicGen: both channels are played and written, their mean is heard by rewards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import MusicgenForConditionalGeneration

from cluster.cli import main
from musicrl.audio import write_wav
from musicrl.codecs.huggingface import HuggingFaceCodec
from musicrl.codecs.stereo import StereoCodec
from musicrl.config import TrainConfig
from musicrl.rollout import RolloutWorker
from musicrl.sampler.sampling import SamplingConfig
from musicrl.settings import build
from musicrl.solo import solo
from musicrl.types import Clips, Prompt, clips_of
from musicrl.worlds import load_world
from tests.small_musicgen import HOP, RATE, VOCAB, tokenizer, write_world

PROMPTS = [Prompt(id="a", text="slow piano"), Prompt(id="b", text="fast")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stereo")
    write_world(folder, channels=2)
    return folder


def _channels(path: Path) -> int:
    return int(soundfile.info(path).channels)


def test_a_rollout_plays_what_generate_plays(world: Path) -> None:
    """Greedily, in both channels; rewards are given their mean."""
    loaded = load_world(world)
    worker = RolloutWorker(loaded, SamplingConfig(top_k=1))
    _, clips = worker.generate(
        PROMPTS, first_prompt_index=0, step=0, run_seed=0, samples_per_prompt=1, version=0
    )
    theirs = MusicgenForConditionalGeneration.from_pretrained(world / "musicgen").eval()
    for setting in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
        setattr(theirs.generation_config, setting, VOCAB)
    texts = tokenizer()([prompt.text for prompt in PROMPTS], padding=True, return_tensors="pt")
    steps = loaded.steps_of(None)
    with torch.no_grad():
        wanted = theirs.generate(
            input_ids=texts.input_ids,
            attention_mask=texts.attention_mask,
            do_sample=False,
            guidance_scale=1.0,
            max_length=steps + 1,
        ).numpy()
    assert (steps, wanted.shape) == (21, (2, 2, 20 * HOP))
    assert np.abs(wanted[:, 0] - wanted[:, 1]).max() > 1e-2
    np.testing.assert_allclose(clips.channels, wanted.clip(-1, 1), atol=1e-6)
    np.testing.assert_allclose(clips.audio, wanted.clip(-1, 1).mean(1), atol=1e-6)
    assert clips.tokens is not None
    np.testing.assert_array_equal(loaded.decode(clips.tokens), clips.audio)


def test_a_run_scores_the_mean_and_writes_both_channels(world: Path, tmp_path: Path) -> None:
    tree = {
        "out": str(tmp_path / "run"),
        "iterations": 1,
        "model": {"weights": str(world)},
        "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "prompts_per_chunk": 2},
        "algorithm": {"baseline": "group_mean"},
        "evaluation": {"prompts": 2, "audio_prompts": 2},
    }
    summary = solo(build(TrainConfig, tree, origin="test"))
    assert summary["last_step"]["mismatch/max"] < 1e-5
    kinds = summary["evaluation"]["kl"]
    assert {"codebook0.left", "codebook0.right", "codebook1.left", "codebook1.right"} < kinds.keys()
    wavs = list((tmp_path / "run" / "audio").glob("*/*.wav"))
    assert len(wavs) == 4
    assert {_channels(path) for path in wavs} == {2}


def test_every_verb_that_writes_clips_writes_both_channels(world: Path, tmp_path: Path) -> None:
    weights = ["--weights", str(world)]
    assert main(["sample", "slow piano", *weights, "--out", str(tmp_path / "sample")]) == 0
    page = ["--prompts", "1", "--out", str(tmp_path / "page")]
    assert main(["listen", *weights, *page]) == 0
    pool = ["--clips.weights", str(world), "--clips.prompts", "1", "--clips.clips-per-prompt", "2"]
    assert main(["prefs", "pool", *pool, "--out", str(tmp_path / "pool")]) == 0
    files = [path for kind in ("wav", "mp3") for path in tmp_path.rglob(f"*.{kind}")]
    assert len(files) == 4
    assert {_channels(path) for path in files} == {2}


def test_channels_alternate_in_the_codes(world: Path) -> None:
    mono = HuggingFaceCodec.from_musicgen(world / "musicgen")
    codec = StereoCodec(mono)
    assert (codec.num_codebooks, codec.channels, codec.vocab_size) == (4, 2, VOCAB)
    left, right = torch.randint(VOCAB, (2, 3, 2, 5))
    codes = torch.stack([left, right], dim=2).flatten(1, 2)
    both = torch.stack([mono.decode(left), mono.decode(right)], dim=1)
    assert torch.equal(codec.decode_channels(codes), both)
    assert torch.equal(codec.decode(codes), both.mean(1))
    sound = both[:, 0]
    assert torch.equal(codec.encode(sound)[:, 1::2], mono.encode(sound))
    assert torch.equal(codec.encode(sound)[:, ::2], mono.encode(sound))
    with pytest.raises(ValueError, match="3 codebooks do not split into two channels"):
        codec.decode(codes[:, :3])


def test_clips_keep_what_both_channels_differ_by() -> None:
    channels = np.array([[[0.5, -1.0], [0.25, 1.0]]], np.float32)
    clips = clips_of(channels, RATE)
    assert clips.audio.tolist() == [[0.375, 0.0]]
    np.testing.assert_array_equal(clips.channels, channels)
    mono = Clips(audio=channels[:, 0], sample_rate=RATE)
    np.testing.assert_array_equal(mono.channels, channels[:, :1])


def test_a_file_has_one_channel_or_two(tmp_path: Path) -> None:
    audio = np.array([[0.5, -0.5, 2.0], [0.25, 0.0, -2.0]], np.float32)
    write_wav(tmp_path / "a.wav", audio, RATE)
    found, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == RATE
    np.testing.assert_allclose(found.T, audio.clip(-1, 1), atol=1e-4)
    with pytest.raises(ValueError, match=r"b\.wav: audio must be one or two finite channels"):
        write_wav(tmp_path / "b.wav", np.zeros((3, 4), np.float32), RATE)
