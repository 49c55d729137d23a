"""Records of stages: what was finished from what, so that nothing is made twice.

    <out>/stages/NAME.json         finished: digests of settings, of what was read and of each file
    <out>/stages/NAME.begun.json   begun and not finished: the same digests, the seconds spent

A file whose size and time of change are those of its record is taken to be the recorded one, as
git does; any other is read again. Code is no part of the digests: delete a record to run its stage
with another version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from musicrl.pretrain.stage import Stage
from musicrl.textfile import write_text

FOLDER = "stages"
CHUNK = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """A file as it was when its stage finished."""

    size: int
    """Bytes."""
    changed: int
    """Nanoseconds since 1970."""
    digest: str

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Reads the file."""
        status = path.stat()
        return cls(size=status.st_size, changed=status.st_mtime_ns, digest=file_digest(path))

    def is_of(self, path: Path) -> bool:
        """Whether the file holds what it held."""
        if not path.is_file():
            return False
        status = path.stat()
        if status.st_size != self.size:
            return False
        return status.st_mtime_ns == self.changed or file_digest(path) == self.digest


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A stage that was begun: what it is made from, and the time it took so far."""

    settings: str
    read: Mapping[str, str]
    seconds: float = 0.0
    """Of the attempts that could say so: one that was killed could not."""
    attempts: int = 0


@dataclass(frozen=True, kw_only=True)
class Record(Begun):
    """A stage that was finished."""

    wrote: Mapping[str, Stamp]
    """By path, relative to the folder of the world."""
    figures: Mapping[str, float | None] = field(default_factory=dict)
    """None where a figure was not finite: not measured."""
    finished: str
    """ISO 8601, UTC."""

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(stamp.size for stamp in self.wrote.values())

    @property
    def digest(self) -> str:
        """Of its files."""
        lines = (f"{path} {stamp.digest}\n" for path, stamp in sorted(self.wrote.items()))
        return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


class Records:
    """All records of one folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / FOLDER

    def find(self, stage: Stage) -> Record | None:
        """The record of a stage, if its settings, all that it read and its files are still those of
        the record."""
        record = self.read_record(stage.name)
        if record is None or record.settings != stage.digest or record.read != self.inputs(stage):
            return None
        is_whole = all(stamp.is_of(self.out / path) for path, stamp in record.wrote.items())
        return record if is_whole else None

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Digests of what a stage reads: of other stages' files by their records, and of files.

        Raises ValueError when a stage before it is not finished.
        """
        found = {}
        for name in stage.reads:
            record = self.read_record(name)
            if record is None:
                raise ValueError(
                    f"stage {stage.name} reads what {name} writes, and that is missing"
                )
            found[name] = record.digest
        return {**found, **{f"file {path.name}": file_digest(path) for path in stage.files}}

    def read_record(self, name: str) -> Record | None:
        """The record of a finished stage, whatever its settings."""
        tree = _read(self._done(name))
        if tree is None:
            return None
        wrote = {path: Stamp(**stamp) for path, stamp in tree.pop("wrote").items()}
        return Record(wrote=wrote, **tree)

    def read_begun(self, name: str) -> Begun | None:
        """What is known of a stage that was begun and not finished."""
        tree = _read(self._begun(name))
        return None if tree is None else Begun(**tree)

    def begin(self, name: str, begun: Begun) -> None:
        """Note that a stage runs; it counts as not finished from here."""
        _write(self._begun(name), begun)
        self._done(name).unlink(missing_ok=True)

    def finish(self, name: str, record: Record) -> None:
        """Note that its files are whole."""
        _write(self._done(name), record)
        self._begun(name).unlink(missing_ok=True)

    def stamps(self, stage: Stage) -> dict[str, Stamp]:
        """The files of a stage as they are now. Raises ValueError for a pattern without a file."""
        found: dict[str, Stamp] = {}
        for pattern in stage.writes:
            paths = sorted(self.out.glob(pattern))
            if not paths:
                raise ValueError(f"stage {stage.name} wrote no {self.out / pattern}")
            found |= {str(path.relative_to(self.out)): Stamp.of(path) for path in paths}
        return found

    def _done(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _begun(self, name: str) -> Path:
        return self.folder / f"{name}.begun.json"


def file_digest(path: Path) -> str:
    """Hex blake2b of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise ValueError(f"{path} is no record: delete it to run its stage again") from fault
    if not isinstance(tree, dict) or "settings" not in tree:
        raise ValueError(f"{path} is no record: delete it to run its stage again")
    return tree


def _write(path: Path, record: Begun) -> None:
    write_text(path, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")
