"""Captioned recordings of every form, cut into clips that the other stages read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from cluster.cli import main
from cluster.commands.listen import clips_like
from musicrl.codecs.spectral import SpectralCodec, SpectralCodecConfig
from musicrl.embedders.mulan import MuLan, MuLanConfig
from musicrl.pretrain.codec import measure_codec
from musicrl.pretrain.cutting import RecordingsStageConfig, cut_recordings
from musicrl.pretrain.embedder import EmbedderStageConfig, train_embedder
from musicrl.pretrain.recordings import Recording, read_recordings
from musicrl.pretrain.world import WorldData
from musicrl.prompts import load_prompts
from musicrl.types import Prompt

RATE, SIZE = 16_000, 7_680
"""Of the clips: Hz, and samples (six frames of the codec)."""


def tone(number: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """A sine of its own frequency."""
    steps = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 40 * number) * steps)).astype(np.float32)


def encoded(audio: np.ndarray, rate: int = RATE, kind: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def told(source: Path) -> dict[str, str | None]:
    return {found.name: found.caption for found in read_recordings(source)}


def test_a_folder_with_captions_beside_the_files_or_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.wav", "deep/b.mp3", "c.ogg"):
        kind = {"wav": "WAV", "mp3": "MP3", "ogg": "OGG"}[name[-3:]]
        (tmp_path / name).write_bytes(encoded(tone(1, 0.5), kind=kind))
    (tmp_path / "a.txt").write_text("a slow tune\n")
    (tmp_path / "deep" / "b.json").write_text('{"text": "drums"}')
    assert told(tmp_path) == {"a.wav": "a slow tune", "c.ogg": None, "deep/b.mp3": "drums"}
    (tmp_path / "metadata.csv").write_text("file_name,caption\nc.ogg,a harp\na.wav,a flute\n")
    assert told(tmp_path) == {"a.wav": "a flute", "c.ogg": "a harp", "deep/b.mp3": "drums"}
    for found in read_recordings(tmp_path):
        assert found.decode(8_000).shape == (4_000,)
    (tmp_path / "metadata.csv").write_text("name,caption\nc.ogg,a harp\n")
    with pytest.raises(ValueError, match=r"metadata\.csv has no column 'file_name'"):
        told(tmp_path)


def test_tars_of_webdataset(tmp_path: Path) -> None:
    """A key ends at the first dot; other members are passed over."""
    first = {
        "00/x.flac": encoded(tone(1, 0.5)),
        "00/x.json": json.dumps({"caption": "a reel"}).encode(),
        "00/x.cls": b"7",
        "y.wav": encoded(tone(2, 0.5, 8_000), 8_000, "WAV"),
        "y.txt": b"a waltz",
    }
    write_tar(tmp_path / "s-0.tar", first)
    write_tar(tmp_path / "s-1.tar", {"z.txt": b"no audio", "w.wav": encoded(tone(3, 0.5))})
    assert told(tmp_path) == {"s-0.tar/00/x": "a reel", "s-0.tar/y": "a waltz", "s-1.tar/w": None}
    x, y, _ = read_recordings(tmp_path)
    np.testing.assert_allclose(x.decode(RATE), tone(1, 0.5), atol=1e-4)
    np.testing.assert_allclose(y.decode(RATE)[1000:7000], tone(2, 0.5)[1000:7000], atol=0.01)
    (tmp_path / "s-1.tar").write_bytes((tmp_path / "s-0.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"s-1\.tar is not a readable tar file"):
        told(tmp_path)


def test_parquet_of_datasets_and_of_plain_bytes(tmp_path: Path) -> None:
    data = [encoded(tone(n, 0.5)) for n in (1, 2)]
    struct = [{"bytes": data[0], "path": "a.flac"}, {"bytes": None, "path": "lost.flac"}]
    pq.write_table(pa.table({"audio": struct, "caption": ["one", "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"audio": data[1:], "text": ["three"]}), tmp_path / "b.parquet")
    found = list(read_recordings(tmp_path))
    assert {r.name: r.caption for r in found} == {
        "a.parquet/000000": "one",
        "a.parquet/000001": "two",
        "b.parquet/000000": "three",
    }
    np.testing.assert_allclose(found[2].decode(RATE), tone(2, 0.5), atol=1e-4)
    with pytest.raises(ValueError, match=r"a\.parquet/000001 is not a readable audio file"):
        found[1].decode(RATE)
    assert told(tmp_path / "b.parquet") == {"b.parquet/000000": "three"}
    pq.write_table(pa.table({"audio": ["a.flac"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: column 'audio' holds string, not the bytes"):
        told(tmp_path)
    with pytest.raises(FileNotFoundError, match="no recordings in"):
        told(tmp_path / "a.txt")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 recordings of 1.3 s at 8 kHz, a silent one, a short one."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(40):
        soundfile.write(folder / f"{number}.wav", tone(number, 1.3, 8_000), 8_000)
        (folder / f"{number}.txt").write_text(f"tune number {number}")
    for name, audio in {"silent": np.zeros(8_000), "short": tone(1, 0.2, 8_000)}.items():
        soundfile.write(folder / f"{name}.wav", audio, 8_000)
        (folder / f"{name}.txt").write_text(name)
    return folder


def configured(source: Path, world: Path) -> RecordingsStageConfig:
    return RecordingsStageConfig(
        source=source,
        world=world,
        clip_seconds=0.48,
        validation_share=0.2,
        test_share=0.2,
        shard_clips=7,
    )


@pytest.fixture(scope="module")
def cut(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    world = tmp_path_factory.mktemp("cut") / "world"
    return world, cut_recordings(configured(source, world))


def test_every_whole_clip_is_there_once_with_its_recordings_caption(
    cut: tuple[Path, dict[str, float]],
) -> None:
    world, counts = cut
    assert sum(counts[f"clips/{split}"] for split in ("train", "validation", "test")) == 80
    assert counts["left out/silent clips"] == 2
    assert counts["left out/short recordings"] == 1
    seen: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        data = WorldData(world, split)
        assert (data.sample_rate, data.num_samples, len(data)) == (
            RATE,
            SIZE,
            counts[f"clips/{split}"],
        )
        captions = data.captions(range(len(data)), Random(0))
        seen[split] = set(captions)
        for index in (0, 1, len(data) - 1):  # the last is of a shard that is not full
            number = int(captions[index].split()[-1])
            start = (index % 2) * SIZE
            wanted = tone(number, 1.3)[start : start + SIZE]
            np.testing.assert_allclose(
                data.audio([index])[0].numpy()[200:-200], wanted[200:-200], atol=0.02
            )
    assert len(seen["train"] | seen["validation"] | seen["test"]) == 40
    assert not seen["train"] & (seen["validation"] | seen["test"])


def test_the_stages_learn_from_them(
    cut: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The measures of a codec, the embedder and the prompts; what attributes alone could tell is left out."""
    world, _ = cut
    codec = SpectralCodec(SpectralCodecConfig(num_components=6, num_codebooks=4, vocab_size=8))
    kept = measure_codec(codec, WorldData(world, "validation"), 4)
    assert kept.keys() == {"log_spectral_distance/4", "chroma_correlation/4"}
    model = MuLanConfig(
        window_seconds=0.25,
        width=16,
        num_blocks=1,
        text_width=16,
        text_layers=1,
        condition_levels=0,
    )
    config = EmbedderStageConfig(
        world=world, weights=tmp_path, model=model, codec_levels=0, steps=3, batch_clips=8
    )
    found = train_embedder(config)
    assert "cosine/matched" in found
    assert not [name for name in found if name.startswith("zero_shot")]
    assert MuLan.from_file(tmp_path / "embedder.safetensors").sample_rate == RATE
    flags = ["--world", str(world), "--weights", str(tmp_path), "--heldout-prompts", "4"]
    assert main(["pretrain", "prompts", *flags]) == 0
    assert "prompts/heldout                 4" in capsys.readouterr().out
    prompts = load_prompts(tmp_path / "prompts.parquet", split="heldout")
    assert all(prompt.text.startswith("tune number") for prompt in prompts)
    assert {prompt.attributes for prompt in prompts} == {()}
    heard = clips_like(world, prompts[:1]).audio[0]
    number = int(prompts[0].text.split()[-1])
    np.testing.assert_allclose(heard[200:-200], tone(number, 0.48)[200:-200], atol=0.02)


def test_a_world_is_cut_once_and_never_over_another(
    cut: tuple[Path, dict[str, float]], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, counts = cut
    shard = world / "audio-train" / "00000.npy"
    before = shard.stat().st_mtime_ns
    config = configured(source, world)
    assert cut_recordings(config) == counts
    assert shard.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds clips of other settings or recordings"):
        cut_recordings(replace(config, clip_seconds=0.25))
    flags = ["--world", str(world), "--source", str(source), "--clip-seconds", "0.25"]
    assert main(["pretrain", "recordings", *flags]) == 1
    assert "of other settings or recordings" in capsys.readouterr().err


def test_an_import_that_was_interrupted_starts_again(source: Path, tmp_path: Path) -> None:
    """Of shards that it left, none is kept: they may be of other settings."""
    (tmp_path / "audio-train").mkdir()
    np.save(tmp_path / "audio-train" / "00009.npy", np.zeros((3, 8), np.int16))
    counts = cut_recordings(configured(source, tmp_path))
    assert len(WorldData(tmp_path, "train")) == counts["clips/train"]


def test_bad_recordings_end_it_or_are_counted(source: Path, tmp_path: Path) -> None:
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "3.txt").unlink()
    (tmp_path / "4.wav").write_bytes(b"broken")
    config = configured(tmp_path, tmp_path / "world")
    with pytest.raises(ValueError, match=r"3\.wav has no caption"):
        cut_recordings(config)
    counts = cut_recordings(replace(config, skip_bad=True))
    assert counts["left out/bad recordings"] == 2


def test_settings_that_cannot_be_met_are_refused(source: Path, tmp_path: Path) -> None:
    config = configured(source, tmp_path / "world")
    with pytest.raises(ValueError, match=r"the split 'train' got no clip .*'short recordings': 42"):
        cut_recordings(replace(config, clip_seconds=2.0))
    with pytest.raises(ValueError, match="leave nothing to train on"):
        replace(config, validation_share=0.5, test_share=0.5)
    with pytest.raises(ValueError, match="clip_seconds must be above 0"):
        replace(config, clip_seconds=0.0)


def test_a_recording_without_bytes_is_named() -> None:
    with pytest.raises(ValueError, match="x/1 is not a readable audio file"):
        Recording(name="x/1", caption="a tune", data=b"").decode(RATE)


def test_a_described_world_is_like_its_attributes_alone(
    cut: tuple[Path, dict[str, float]],
) -> None:
    data = WorldData(cut[0], "test")
    (caption,) = data.captions([0], Random(0))
    assert data.is_like(0, Prompt(id="1", text=caption))
    assert not data.is_like(0, Prompt(id="1", text="another tune"))
