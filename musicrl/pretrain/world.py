"""The embedded world: captioned clips of real scores, rendered in shards that a stop cannot spoil.

Layout of the folder: `excerpts-SPLIT.parquet` (the plan: what is true of each clip and its notes)
and `audio-SPLIT/NNNNN.npy` (int16 [clips of the shard, N]). `WorldData` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.bounds import at_least
from musicrl.pretrain.attributes import UNKNOWN, Attributes, caption
from musicrl.pretrain.excerpts import SPLITS, Excerpt, load_pieces, plan_excerpts
from musicrl.pretrain.progress import track
from musicrl.pretrain.record import file_digest
from musicrl.pretrain.render import Renderer, find_soundfont, require_synthesiser
from musicrl.textfile import write_text
from musicrl.types import Prompt

NOTES = Path(__file__).parent.parent / "data" / "notes.parquet"
Job = tuple["WorldConfig", Path, Path, list[Excerpt]]
"""A shard to render: settings, soundfont, its file and its clips."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Rendering of the corpus into captioned clips."""

    world: Path = Path("worlds/tiny")
    """Folder of the clips."""
    notes: Path = NOTES
    """Note table (the shipped one unless told otherwise)."""
    soundfont: Path | None = None
    """General-MIDI soundfont, .sf2 or .sf3 (none: FluidR3 GM where Debian installs it)."""
    train_clips: int = 16_000
    validation_clips: int = 512
    test_clips: int = 512
    clip_seconds: float = 6.0
    sample_rate: int = 16_000
    """Hz."""
    shard_clips: int = 256
    seed: int = 0
    processes: int = 2

    def __post_init__(self) -> None:
        at_least(1, train_clips=self.train_clips, validation_clips=self.validation_clips)
        at_least(1, test_clips=self.test_clips, sample_rate=self.sample_rate)
        at_least(1, shard_clips=self.shard_clips, processes=self.processes)
        if not self.clip_seconds > 0:
            raise ValueError(f"clip_seconds must be above 0, got {self.clip_seconds}")


def build_world(config: WorldConfig) -> dict[str, float]:
    """Plan and render every split; finished shards are kept, so a stopped build resumes.

    Returns clip counts. Raises ValueError when the folder holds a world of other settings, notes or
    soundfont, and FileNotFoundError or ModuleNotFoundError when there is nothing to render with.
    """
    require_synthesiser()
    soundfont = find_soundfont(config.soundfont)
    config.world.mkdir(parents=True, exist_ok=True)
    _claim(config, soundfont)
    pieces = load_pieces(config.notes)
    sizes = (config.train_clips, config.validation_clips, config.test_clips)
    counts = dict(zip(SPLITS, sizes, strict=True))
    for split, count in counts.items():
        plan = plan_excerpts(
            pieces, split=split, count=count, seconds=config.clip_seconds, seed=config.seed
        )
        excerpts = list(plan)
        _write_plan(config.world / f"excerpts-{split}.parquet", excerpts)
        _render_split(config, soundfont, split, excerpts)
    return {f"clips/{split}": float(count) for split, count in counts.items()}


def _claim(config: WorldConfig, soundfont: Path) -> None:
    """Note what the folder's clips are made with. Raises ValueError when that was something else."""
    settings = {
        key: value
        for key, value in asdict(config).items()
        if key not in {"world", "notes", "soundfont", "processes"}
    }
    sources = {"notes": file_digest(config.notes), "soundfont": file_digest(soundfont)}
    path = config.world / "world.json"
    if path.is_file():
        found = {
            **sources,
            **json.loads(path.read_text()),
        }  # older worlds do not name their sources
        if found != {**settings, **sources}:
            raise ValueError(
                f"{config.world} holds a world of other settings, notes or soundfont (see {path})"
            )
    write_text(path, json.dumps({**settings, **sources}, indent=1))


def _write_plan(path: Path, excerpts: Sequence[Excerpt]) -> None:
    rows = [
        {
            "piece": excerpt.piece,
            **excerpt.attributes.as_row(),
            "onset": [event[0] for event in excerpt.events],
            "duration": [event[1] for event in excerpt.events],
            "pitch": [event[2] for event in excerpt.events],
            "channel": [event[3] for event in excerpt.events],
        }
        for excerpt in excerpts
    ]
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
    partial.replace(path)


def _render_split(
    config: WorldConfig, soundfont: Path, split: str, excerpts: list[Excerpt]
) -> None:
    folder = config.world / f"audio-{split}"
    folder.mkdir(exist_ok=True)
    size = config.shard_clips
    jobs = [
        (config, soundfont, folder / f"{start // size:05d}.npy", excerpts[start : start + size])
        for start in range(0, len(excerpts), size)
    ]
    missing = [job for job in jobs if not job[2].is_file()]
    for _ in track(
        _rendered(missing, config.processes), description=f"rendering {split}", total=len(missing)
    ):
        pass


def _rendered(jobs: Sequence[Job], processes: int) -> Iterator[None]:
    """Renders each shard; one process is this one."""
    if processes == 1 or not jobs:
        yield from map(_render_shard, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_render_shard, jobs)


def _render_shard(job: Job) -> None:
    config, soundfont, path, excerpts = job
    renderer = Renderer(soundfont, sample_rate=config.sample_rate, seconds=config.clip_seconds)
    audio = np.stack([renderer.render(excerpt) for excerpt in excerpts])
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, audio)
    partial.replace(path)


class WorldData:
    """One split of a world, rendered or cut from recordings: audio by index (memory-mapped) and
    true captions."""

    def __init__(self, folder: Path, split: str) -> None:
        plan, settings = folder / f"excerpts-{split}.parquet", folder / "world.json"
        if not plan.is_file() or not settings.is_file():
            raise FileNotFoundError(
                f"no {split} clips in {folder}: run `musicrl pretrain world`, or `recordings`"
            )
        self.attributes, self._captions = read_plan(plan)
        self.sample_rate: int = json.loads(settings.read_text())["sample_rate"]
        shards = sorted((folder / f"audio-{split}").glob("*.npy"))
        self._shards = [np.load(path, mmap_mode="r") for path in shards]
        if sum(len(shard) for shard in self._shards) != len(self.attributes):
            raise ValueError(
                f"{folder}: {split} is not rendered whole: run `musicrl pretrain world`"
            )
        self._shard_clips = len(self._shards[0])

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def num_samples(self) -> int:
        return int(self._shards[0].shape[1])

    def audio(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        """Clips float32 [B, N] in [-1, 1]."""
        rows = [self._shards[i // self._shard_clips][i % self._shard_clips] for i in indices]
        return torch.from_numpy(np.stack(rows).astype(np.float32) / 32768)

    @property
    def is_described(self) -> bool:
        """Whether attributes are known, and not captions alone."""
        return not self._captions

    @property
    def described(self) -> list[str]:
        """What is said of each clip."""
        return self._captions or [repr(row) for row in self.attributes]

    def is_like(self, index: int, prompt: Prompt) -> bool:
        """Whether a clip has all attributes of a prompt, or the very caption."""
        if not self.is_described:
            return self._captions[index] == prompt.text
        known = self.attributes[index].as_row()
        return all(known.get(name) == value for name, value in prompt.attributes)

    def captions(
        self, indices: Sequence[int] | NDArray[np.integer], rng: Random, *, complete: bool = False
    ) -> list[str]:
        """A true caption for each clip: one wording of its attributes, or the one that it has."""
        if self._captions:
            return [self._captions[int(i)] for i in indices]
        return [caption(self.attributes[int(i)], rng, complete=complete) for i in indices]


def read_plan(plan: Path) -> tuple[list[Attributes], list[str]]:
    """Of a split's Parquet file: attributes of every clip, and captions where the plan of recordings
    has those instead."""
    if "caption" in pq.read_schema(plan).names:
        captions = [str(text) for text in pq.read_table(plan, columns=["caption"])[0].to_pylist()]
        return [UNKNOWN] * len(captions), captions
    columns = [*Attributes.__dataclass_fields__]
    return [Attributes(**row) for row in pq.read_table(plan, columns=columns).to_pylist()], []
