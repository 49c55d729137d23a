"""Captioned recordings, read one at a time: a folder of audio files, WebDataset tars or Parquet.

    folder      song.wav + song.txt or song.json, or metadata.csv / .jsonl with `file_name`
    WebDataset  shard-000.tar: 0001.flac + 0001.txt or 0001.json, members of one key adjacent
    Parquet     column `audio`: bytes, or `datasets`' struct of bytes and path

A caption is the text of a .txt, or what a .json or a table calls `caption` or `text`. Nothing is
decoded before it is asked for; nothing here knows of clips.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from musicrl.audio import decode_audio

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
TEXT, JSON = ".txt", ".json"
CAPTIONS = ("caption", "text")
"""Names of a caption, the first that is there."""
FILE_NAME, AUDIO = "file_name", "audio"
METADATA = ("metadata.csv", "metadata.jsonl")
ROWS = 16
"""Of a Parquet file that are read together: each may hold minutes of audio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Audio as it is stored, and what it is said to be."""

    name: str
    """Of no two the same."""
    caption: str | None
    """None where nothing says."""
    data: bytes | Path

    def decode(self, sample_rate: int) -> NDArray[np.float32]:
        """Mono float32 [N] at `sample_rate` Hz. Raises ValueError naming the recording."""
        data = self.data.read_bytes() if isinstance(self.data, Path) else self.data
        return decode_audio(data, name=self.name, sample_rate=sample_rate)


Reader = Callable[[Path, Sequence[Path]], Iterator[Recording]]
"""The recordings of some files of a folder."""


def read_recordings(source: Path) -> Iterator[Recording]:
    """The recordings of a file or of a folder and its folders, in the order of their names; of a
    folder that holds several kinds, the first of `READERS` that it has.

    Raises FileNotFoundError when there are none, ValueError naming a file that cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    for suffixes, read in READERS.items():
        files = files_of(source, suffixes)
        if files:
            yield from read(folder, files)
            return
    known = ", ".join(suffix for suffixes in READERS for suffix in suffixes)
    raise FileNotFoundError(f"no recordings in {source}: no file of {known}")


def files_of(source: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of those kinds, sorted."""
    found = sorted(source.rglob("*")) if source.is_dir() else [source]
    return [path for path in found if path.suffix.lower() in suffixes and path.is_file()]


def _read_tars(folder: Path, files: Sequence[Path]) -> Iterator[Recording]:
    for path in files:
        try:
            with tarfile.open(path) as tar:
                for key, members in _samples(tar):
                    yield from _sample(f"{path.relative_to(folder)}/{key}", members)
        except tarfile.TarError as fault:
            raise ValueError(f"{path} is not a readable tar file: {fault}") from fault


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members by suffix: a name ends at the first dot of its last part (WebDataset)."""
    latest, members = None, dict[str, bytes]()
    for member in tar:
        file = tar.extractfile(member)
        if file is None:
            continue
        place, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        key = f"{place}/{stem}" if place else stem
        if key != latest:
            if latest is not None:
                yield latest, members
            latest, members = key, {}
        members[f".{suffix.lower()}"] = file.read()
    if latest is not None:
        yield latest, members


def _sample(name: str, members: Mapping[str, bytes]) -> Iterator[Recording]:
    audio = [data for suffix, data in members.items() if suffix in AUDIO_SUFFIXES]
    if audio:
        yield Recording(name=name, caption=_caption(name, members), data=audio[0])


def _caption(name: str, members: Mapping[str, bytes]) -> str | None:
    if TEXT in members:
        return members[TEXT].decode("utf-8").strip() or None
    if JSON in members:
        try:
            return named_caption(json.loads(members[JSON]))
        except ValueError as fault:
            raise ValueError(f"{name}{JSON} is not readable JSON: {fault}") from fault
    return None


def named_caption(values: Any) -> str | None:
    """What a mapping calls its caption."""
    found = [values[k] for k in CAPTIONS if isinstance(values, Mapping) and values.get(k)]
    return str(found[0]).strip() or None if found else None


def _read_parquet(folder: Path, files: Sequence[Path]) -> Iterator[Recording]:
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                _check_columns(path, file.schema_arrow)
                number = 0
                for batch in file.iter_batches(ROWS):
                    for row in batch.to_pylist():
                        yield _row(f"{path.relative_to(folder)}/{number:06d}", row)
                        number += 1
        except (pa.ArrowInvalid, OSError) as fault:
            raise ValueError(f"{path} is not a readable Parquet file: {fault}") from fault


def _check_columns(path: Path, schema: pa.Schema) -> None:
    if AUDIO not in schema.names:
        raise ValueError(f"{path} has no column {AUDIO!r}, only {', '.join(schema.names)}")
    kind = schema.field(AUDIO).type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (is_bytes or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise ValueError(f"{path}: column {AUDIO!r} holds {kind}, not the bytes of audio files")


def _row(name: str, row: Mapping[str, Any]) -> Recording:
    audio = row[AUDIO]
    data = audio["bytes"] if isinstance(audio, Mapping) else audio
    return Recording(name=name, caption=named_caption(row), data=data or b"")


def _read_files(folder: Path, files: Sequence[Path]) -> Iterator[Recording]:
    told = _metadata(folder)
    for path in files:
        name = str(path.relative_to(folder))
        beside = {
            suffix: path.with_suffix(suffix).read_bytes()
            for suffix in (TEXT, JSON)
            if path.with_suffix(suffix).is_file()
        }
        yield Recording(name=name, caption=told.get(name) or _caption(name, beside), data=path)


def _metadata(folder: Path) -> dict[str, str | None]:
    """Captions by file name, where the folder has a table of them."""
    for name in METADATA:
        path = folder / name
        if path.is_file():
            rows = _rows_of(path)
            if any(FILE_NAME not in row for row in rows):
                raise ValueError(f"{path} has no column {FILE_NAME!r}")
            return {str(row[FILE_NAME]): named_caption(row) for row in rows}
    return {}


def _rows_of(path: Path) -> list[Mapping[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as fault:
        raise ValueError(f"{path} holds a line that is no JSON: {fault}") from fault


READERS: Mapping[tuple[str, ...], Reader] = MappingProxyType(
    {(".tar",): _read_tars, (".parquet",): _read_parquet, AUDIO_SUFFIXES: _read_files}
)
"""By the suffixes of the files that each reads."""
