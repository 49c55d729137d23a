"""Records of the steps of a reproduction, so that a killed one goes on where it was.

    <folder>/NAME.json    {"digest": of what decides the step, "is_done": ..., "facts": {...}}

A record of other settings counts for nothing. Knows nothing of what the steps do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicrl.textfile import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a step."""

    digest: str
    is_done: bool
    facts: Mapping[str, Any]


class Records:
    """The records of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> Record | None:
        """The record of a step that was begun, whatever its settings.

        Raises ValueError naming a file that is no record.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Record(digest=values["digest"], is_done=values["is_done"], facts=values["facts"])
        except (ValueError, KeyError, TypeError) as fault:
            raise ValueError(f"{path} is not the record of a step: {fault!r}") from fault

    def is_done(self, name: str, digest: str) -> bool:
        """Whether a step was finished under the settings of `digest`."""
        record = self.read(name)
        return record is not None and record.is_done and record.digest == digest

    def begin(self, name: str, digest: str) -> None:
        self._write(name, digest, is_done=False, facts={})

    def finish(self, name: str, digest: str, **facts: Any) -> None:
        self._write(name, digest, is_done=True, facts=facts)

    def _write(self, name: str, digest: str, *, is_done: bool, facts: Mapping[str, Any]) -> None:
        values = {"digest": digest, "is_done": is_done, "facts": dict(facts)}
        write_text(self._path(name), json.dumps(values, indent=1, allow_nan=False) + "\n")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def digest_of(settings: Mapping[str, Any], *files: Path) -> str:
    """A digest of settings, as JSON holds them, and of the contents of files."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        digest.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return digest.hexdigest()
