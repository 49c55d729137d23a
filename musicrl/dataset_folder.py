"""Folders that `datasets` writes with `save_to_disk`, as Arrow tables, without that library.

    dataset_dict.json   names the splits, each a folder like this one; or
    state.json          names the .arrow files, Arrow streams one after the other

It knows no column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc

SPLITS, STATE = "dataset_dict.json", "state.json"


def read_dataset(folder: Path) -> Iterator[tuple[str | None, pyarrow.Table]]:
    """The tables of a folder, each with the name of its split (none: there are no splits).

    Raises FileNotFoundError or ValueError naming the file that is missing or unreadable.
    """
    if not (folder / SPLITS).is_file():
        yield None, _table(folder)
        return
    for split in _values(folder / SPLITS, "splits"):
        yield str(split), _table(folder / str(split))


def _table(folder: Path) -> pyarrow.Table:
    files = [folder / str(entry["filename"]) for entry in _values(folder / STATE, "_data_files")]
    if not files:
        raise ValueError(f"{folder / STATE} names no data files")
    return pyarrow.concat_tables([_stream(file) for file in files])


def _stream(file: Path) -> pyarrow.Table:
    if not file.is_file():
        raise FileNotFoundError(f"the dataset lacks {file}")
    try:
        with pyarrow.memory_map(str(file)) as source:
            return pyarrow.ipc.open_stream(source).read_all()
    except (pyarrow.ArrowInvalid, OSError) as fault:
        raise ValueError(f"{file} is not a readable Arrow stream: {fault}") from fault


def _values(path: Path, key: str) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no dataset at {path.parent}: it lacks {path.name}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ValueError(f"{path} is not readable JSON: {fault}") from fault
    if not isinstance(values, dict) or not isinstance(values.get(key), list):
        raise ValueError(f"{path} has no list {key!r}")  # noqa: TRY004 - a fault of the file
    found: list[Any] = values[key]
    return found
