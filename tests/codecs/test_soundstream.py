from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musicrl.checkpoint import load_tensors, save_tensors
from musicrl.codecs.soundstream import SoundStream, SoundStreamConfig
from musicrl.codecs.spectral import SpectralCodec, SpectralCodecConfig
from musicrl.codecs.table import load_codec
from musicrl.policies.musiclm import MusicLM
from musicrl.world import World

SMALL = SoundStreamConfig(
    sample_rate=16_000,
    strides=(2, 4, 5, 8),
    width=4,
    embedding_size=8,
    num_codebooks=4,
    vocab_size=16,
)


@pytest.fixture(scope="module")
def codec() -> SoundStream:
    torch.manual_seed(0)
    made = SoundStream(SMALL)
    made.quantizer.codebooks.normal_(std=0.1)
    return made.eval()


def test_the_papers_codec_is_24_khz_at_50_hz_with_12_levels_of_1024() -> None:
    with torch.device("meta"):
        codec = SoundStream(SoundStreamConfig())
    assert (codec.sample_rate, codec.frame_size, codec.frame_rate) == (24_000, 480, 50.0)
    assert tuple(codec.quantizer.codebooks.shape) == (12, 1024, 128)
    widths = [block[-1].conv.out_channels for block in list(codec.encoder)[1:5]]  # type: ignore[index]
    assert widths == [64, 128, 256, 512]


def test_frames_and_samples_come_back_in_number(codec: SoundStream) -> None:
    audio = torch.randn(2, 3200) * 0.1
    codes = codec.encode(audio)
    assert codes.shape == (2, 4, 10)
    for levels in (1, 4):
        rebuilt = codec.decode(codes[:, :levels])
        assert rebuilt.shape == audio.shape
        assert rebuilt.abs().max() <= 1
    with pytest.raises(ValueError, match="audio of 3201 samples is not a multiple of 320"):
        codec.encode(torch.zeros(1, 3201))


def test_nothing_hears_the_future(codec: SoundStream) -> None:
    """What changes after frame 6 leaves the codes and the sound of frames 0 to 5 as they were."""
    audio = torch.randn(1, 3200)
    changed = audio.clone()
    changed[:, 6 * 320 :] = torch.randn(1, 4 * 320)
    first, second = codec.embed(audio), codec.embed(changed)
    torch.testing.assert_close(first[:, :6], second[:, :6])
    assert not torch.allclose(first[:, 6:], second[:, 6:])
    vectors = first.detach().clone()
    vectors[:, 6:] = 0
    torch.testing.assert_close(
        codec.synthesise(first)[:, : 6 * 320], codec.synthesise(vectors)[:, : 6 * 320]
    )


def test_a_file_brings_back_the_codec_of_its_family(codec: SoundStream, tmp_path: Path) -> None:
    codec.save(tmp_path / "a.safetensors", chroma=0.5)
    loaded = load_codec(tmp_path / "a.safetensors")
    assert isinstance(loaded, SoundStream)
    assert loaded.config == SMALL
    audio = torch.randn(1, 3200)
    assert torch.equal(loaded.encode(audio), codec.encode(audio))
    assert torch.equal(loaded.decode(codec.encode(audio)), codec.decode(codec.encode(audio)))
    sizes = SpectralCodecConfig(num_components=4, num_codebooks=2, vocab_size=4)
    SpectralCodec(sizes).save(tmp_path / "b.safetensors")
    assert isinstance(load_codec(tmp_path / "b.safetensors"), SpectralCodec)
    tensors, config = load_tensors(tmp_path / "a.safetensors", kind="codec")
    other = {**config, "family": "sound"}
    save_tensors(tmp_path / "c.safetensors", tensors, kind="codec", config=other)
    with pytest.raises(
        ValueError, match=r"c\.safetensors holds a codec 'sound' \(nearest: soundst"
    ):
        load_codec(tmp_path / "c.safetensors")


def test_sizes_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="strides must be 2 or more each"):
        SoundStreamConfig(strides=(1, 480))
    with pytest.raises(ValueError, match="vocab_size must be 1 or more, got 0"):
        SoundStreamConfig(vocab_size=0)


def test_a_world_plays_through_it(tiny_world: Path, tmp_path: Path) -> None:
    """At 50 Hz, four of its frames share a semantic token of 12.5 Hz."""
    folder = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    torch.manual_seed(1)
    codec = SoundStream(replace(SMALL, vocab_size=12))
    codec.quantizer.codebooks.normal_()
    codec.save(folder / "codec.safetensors")
    sizes = World.load(tiny_world).policy.config
    MusicLM(replace(sizes, codec_frames_per_step=4)).save(folder / "policy.safetensors")
    world = World.load(folder)
    assert (world.step_seconds, world.clip_seconds) == (0.08, 0.4)
    tokens = np.random.default_rng(0).integers(0, 8, (2, 5, 17)).astype(np.int16)
    audio = world.decode(tokens)
    assert audio.shape == (2, 6400)
    codes = torch.from_numpy(world.layout.to_codes(tokens).astype(np.int64))
    np.testing.assert_allclose(audio, codec.eval().decode(codes).numpy(), atol=1e-6)
    np.testing.assert_allclose(world.decode(tokens[1:]), audio[1:], atol=1e-5)
