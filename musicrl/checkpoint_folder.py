"""One checkpoint of a run: a folder that is whole or is not used.

    step_N/policy.safetensors, learner.safetensors    what the learner wrote
    step_N/state.json                                 numbers, and the SHA-256 of each of the files

`state.json` is written last, here and wherever the folder is copied to: without it there is no
checkpoint. `sha256sum` gives the same digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from musicrl.textfile import write_text

STATE = "state.json"


def write_checkpoint(target: Path, state: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Make the folder `target`, whole or not at all, of what `write` puts into the folder that it is
    given and of `state`; a damaged one of that name is replaced."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    files = {file.name: _describe(file) for file in sorted(partial.iterdir())}
    write_text(partial / STATE, json.dumps({**state, "files": files}, indent=1))
    move_checkpoint(partial, target)


def move_checkpoint(partial: Path, target: Path) -> None:
    """Give a folder whose files are written its name, once they are on the disk."""
    _sync(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _sync(target.parent)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint that is whole."""
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def checkpoint_fault(folder: Path, *, is_thorough: bool = False) -> str | None:
    """What keeps a checkpoint from being used, as the end of a sentence; None for a whole one. Files
    are told by their sizes, and by their digests too where the look `is_thorough`."""
    try:
        files = read_state(folder)["files"]
        described = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"lacks {STATE}"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return f"has an unreadable {STATE}"
    for name, (size, digest) in described.items():
        if not (folder / name).is_file():
            return f"lacks {name}"
        if (folder / name).stat().st_size != size:
            return f"has a truncated {name}"
        if is_thorough and _digest(folder / name) != digest:
            return f"has a damaged {name}: its SHA-256 is not that of {STATE}"
    return None


def _describe(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": _digest(file)}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Flush a folder's files and its own entries to the disk."""
    for path in (*(p for p in folder.iterdir() if p.is_file()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
