"""A stage of building a world, as the whole of them is run: what it reads, writes and is decided by.

Knows nothing of which stages there are, nor of when one is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step from nothing to a world. Paths are relative to the folder that it is built in."""

    name: str
    settings: Mapping[str, Any]
    """All that decides what it makes, but for what it reads; no path, which may differ from one
    machine to the next."""
    run: Callable[[], Mapping[str, float]]
    """Makes its files and returns its figures."""
    reads: tuple[str, ...] = ()
    """Names of the stages whose files it reads."""
    files: tuple[Path, ...] = ()
    """Files that it reads and that no stage writes."""
    writes: tuple[str, ...]
    """Patterns of its files."""
    checkpoints: tuple[str, ...] = ()
    """Patterns of what it leaves when interrupted, to continue from (none: it starts again, or
    skips what it finds itself)."""
    resumes: str = "starts again"
    """What it does after an interruption, in words."""
    minutes: float
    """About what the tiny preset takes on one thread, extrapolated from a part of it: the stage's
    share of the whole, for the remaining time."""

    @property
    def digest(self) -> str:
        """Of the settings."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
