"""The recordings stage: captioned recordings cut into clips, as the other stages read them.

    <world>/excerpts-SPLIT.parquet   each clip's recording, place in it and caption
    <world>/audio-SPLIT/NNNNN.npy    int16 [clips of the shard, N]
    <world>/world.json               the settings; written last, so that a folder is whole

A recording belongs to one split with all its clips, by a digest of its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from musicrl.audio import loudness
from musicrl.bounds import at_least
from musicrl.pretrain.excerpts import SPLITS
from musicrl.pretrain.progress import track
from musicrl.pretrain.recordings import READERS, Recording, files_of, read_recordings
from musicrl.rewards.text import SILENCE_DBFS
from musicrl.textfile import write_text

LOG = logging.getLogger(__name__)
SETTINGS = "world.json"


@dataclass(frozen=True, kw_only=True)
class RecordingsStageConfig:
    """Cutting of captioned recordings into clips to pretrain on."""

    source: Path = Path("recordings")
    """Folder of audio files, of WebDataset .tar files or of .parquet files, or one such file."""
    world: Path = Path("worlds/mine")
    """Folder of the clips."""
    clip_seconds: float = 6.0
    sample_rate: int = 16_000
    """Hz."""
    clips_per_recording: int = 0
    """From its start (0: all that it holds); what is left of it is not used."""
    validation_share: float = 0.05
    """Of the recordings; so is `test_share`."""
    test_share: float = 0.05
    shard_clips: int = 256
    skip_bad: bool = False
    """Leave out recordings that cannot be decoded or have no caption, and count them, instead of
    ending."""

    def __post_init__(self) -> None:
        if not self.clip_seconds > 0:
            raise ValueError(f"clip_seconds must be above 0, got {self.clip_seconds}")
        at_least(1, sample_rate=self.sample_rate, shard_clips=self.shard_clips)
        at_least(0, clips_per_recording=self.clips_per_recording)
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")

    @property
    def clip_size(self) -> int:
        """Samples."""
        return round(self.clip_seconds * self.sample_rate)

    def split_of(self, name: str) -> str:
        """Of a recording."""
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        if place < self.test_share:
            return "test"
        return "validation" if place < self.test_share + self.validation_share else "train"


class Shards:
    """The clips of one split, written as they come."""

    def __init__(self, config: RecordingsStageConfig, split: str) -> None:
        self._folder = config.world / f"audio-{split}"
        self._plan = config.world / f"excerpts-{split}.parquet"
        self._size = config.shard_clips
        self._clips: list[NDArray[np.int16]] = []
        self._rows: list[dict[str, object]] = []
        self._written = 0
        shutil.rmtree(self._folder, ignore_errors=True)  # of an import that was interrupted
        self._folder.mkdir(parents=True)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, clip: NDArray[np.float32], row: dict[str, object]) -> None:
        """A clip [N] in [-1, 1]; louder is clipped."""
        self._clips.append(np.round(np.clip(clip, -1, 1) * 32767).astype(np.int16))
        self._rows.append(row)
        if len(self._clips) == self._size:
            self._write()

    def finish(self) -> None:
        """What is left, then the plan."""
        if self._clips:
            self._write()
        partial = self._plan.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(self._rows), partial, compression="zstd")
        partial.replace(self._plan)

    def _write(self) -> None:
        path = self._folder / f"{self._written:05d}.npy"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.stack(self._clips))
        partial.replace(path)
        self._clips.clear()
        self._written += 1


def cut_recordings(config: RecordingsStageConfig) -> dict[str, float]:
    """Write the clips; the counts of them, and of what was left out. A folder that holds these very
    clips is left as it is.

    Raises ValueError when the folder holds others, when a split got no clip and, without
    `skip_bad`, naming a recording that has no caption or cannot be decoded; FileNotFoundError when
    there are no recordings.
    """
    settings = settings_of(config)
    path = config.world / SETTINGS
    if path.is_file():
        if (found := json.loads(path.read_text())).get("made from") != settings:
            raise ValueError(f"{config.world} holds clips of other settings or recordings ({path})")
        return {name: float(count) for name, count in found["counts"].items()}
    shards = {split: Shards(config, split) for split in SPLITS}
    left_out = Counter[str]()
    for recording in track(read_recordings(config.source), description="cutting recordings"):
        split = shards[config.split_of(recording.name)]
        for number, clip in _clips(recording, config, left_out):
            row = {"piece": recording.name, "clip": number, "caption": recording.caption}
            split.add(clip, row)
    for name, split in shards.items():
        if not len(split):
            raise ValueError(
                f"the split {name!r} got no clip of {config.source}: raise its share, or add "
                f"recordings of {config.clip_seconds:g} s or more (left out: {dict(left_out)})"
            )
        split.finish()
    counts = {f"clips/{name}": len(split) for name, split in shards.items()}
    counts |= {f"left out/{reason}": count for reason, count in left_out.items()}
    values = {"sample_rate": config.sample_rate, "made from": settings, "counts": counts}
    write_text(path, json.dumps(values, indent=1) + "\n")
    return {name: float(count) for name, count in counts.items()}


def _clips(
    recording: Recording, config: RecordingsStageConfig, left_out: Counter[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Number and samples [N] of each clip that is heard."""
    try:
        audio = _decoded(recording, config.sample_rate)
    except ValueError as fault:
        if not config.skip_bad:
            raise
        LOG.warning("left out: %s", fault)
        left_out["bad recordings"] += 1
        return
    size = config.clip_size
    count = min(len(audio) // size, config.clips_per_recording or len(audio))
    if not count:
        left_out["short recordings"] += 1
    for number in range(count):
        clip = audio[number * size : (number + 1) * size]
        if loudness(clip) > SILENCE_DBFS:
            yield number, clip
        else:
            left_out["silent clips"] += 1


def _decoded(recording: Recording, sample_rate: int) -> NDArray[np.float32]:
    if recording.caption is None:
        raise ValueError(f"{recording.name} has no caption")
    return recording.decode(sample_rate)


def settings_of(config: RecordingsStageConfig) -> dict[str, object]:
    """What decides the clips: the settings, and a digest of the files' names and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    for suffixes in READERS:
        for file in files_of(config.source, suffixes):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
    decided = {k: v for k, v in asdict(config).items() if k not in ("source", "world")}
    return {**decided, "files": digest.hexdigest()}
