"""A cursor: how far the answers of a database were exported, part by part.

    <folder>/cursor.json                  this; written last, so that a part it names is whole
    <folder>/comparisons-000001.parquet   the answers of one export, never written again

A part that no cursor names is what a killed export left, and is written over by the next. Knows
nothing of databases.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from musicrl.textfile import write_text

FORMAT = "cursor/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of the folder."""

    file: str
    rows: int
    answer: str
    """Digest of the newest answer that the export looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Everything up to one answer of a database, selected in one way."""

    selection: str
    """How answers are selected; those of another selection would not go with these."""
    number: int = 0
    """Of the newest answer that was looked at; 0: none."""
    answer: str = ""
    """Its digest: in another database the number stands for another answer."""
    parts: tuple[Part, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises FileNotFoundError, or ValueError naming a file that is no cursor."""
        if not path.is_file():
            raise FileNotFoundError(f"no cursor at {path}: `musicrl prefs export --since` makes it")
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            parts = tuple(Part(**part) for part in tree.pop("parts"))
            return cls(**tree, parts=parts)
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise ValueError(f"{path} is not a cursor of exports: {fault}") from fault

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def new_parts(cursor: Cursor, read: int, answer: str) -> tuple[Part, ...]:
    """The parts after the first `read`, of which the last ends with `answer`.

    Raises ValueError when that is not so: they were another cursor's.
    """
    if read and (len(cursor.parts) < read or cursor.parts[read - 1].answer != answer):
        raise ValueError(f"the model learned from {read} parts that are not those of this cursor")
    return cursor.parts[read:]
