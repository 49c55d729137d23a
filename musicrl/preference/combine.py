"""`prefs merge` and `prefs split`: files of comparisons put together, and cut in two by whole groups.

Both stream: memory holds a batch, and the identifiers of a merge. Raters' names and rows stay as
they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from musicrl.preference.dataset import DatasetWriter, check_files, read_batches
from musicrl.preference.schema import COMPARISONS

COLUMN = {"prompt": "prompt", "rater": "rater", "comparison": "id"}


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Put files of comparisons together, each comparison once."""

    files: tuple[Path, ...] = ()
    out: Path = Path("merged.parquet")
    """File to write; its name must contain 'simulated' where a rater is."""
    skip_bad: bool = False
    """Report bad files and go on with the others."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Cut files of comparisons in two: one to learn from, one to be tested on."""

    files: tuple[Path, ...] = ()
    by: Literal["prompt", "rater", "comparison"] = "prompt"
    """What stays whole: all comparisons of one text, or of one listener, go to the same side."""
    heldout: float = 0.05
    """Share of the groups that are held out (the paper's 15,000 of 300,000, section 3.3)."""
    seed: int = 0
    out: Path | None = None
    """Files to write, without their end: `-train.parquet` and `-heldout.parquet` are added (none:
    the first file's own name)."""

    def __post_init__(self) -> None:
        if not 0 < self.heldout < 1:
            raise ValueError(f"heldout must be between 0 and 1, got {self.heldout}")

    def file(self, side: str) -> Path:
        """Of the side 'train' or 'heldout'."""
        stem = self.out or self.files[0].with_suffix("")
        return stem.with_name(f"{stem.name}-{side}.parquet")


def merge(config: MergeConfig) -> tuple[int, int]:
    """Write the file; how many comparisons it holds, and how many came again and were left out.

    Raises as `check_files`.
    """
    checked = check_files(config.files, COMPARISONS, skip_bad=config.skip_bad)
    seen: set[str] = set()
    dropped = 0
    with DatasetWriter(config.out, COMPARISONS) as writer:
        for path in checked.whole:
            for batch in read_batches(path):
                is_new = _first_time(batch, seen)
                writer.write(_filtered(batch, is_new))
                dropped += int((~is_new).sum())
    return writer.num_rows, dropped


def split(config: SplitConfig) -> dict[str, int]:
    """Write both files; how many comparisons each holds. Raises as `check_files`."""
    checked = check_files(config.files, COMPARISONS)
    is_heldout = chooser(config)
    writers = {side: DatasetWriter(config.file(side), COMPARISONS) for side in ("train", "heldout")}
    with writers["train"] as train, writers["heldout"] as heldout:
        for path in checked.whole:
            for batch in read_batches(path):
                held = is_heldout(batch)
                train.write(_filtered(batch, ~held))
                heldout.write(_filtered(batch, held))
    return {side: writer.num_rows for side, writer in writers.items()}


def chooser(config: SplitConfig) -> Callable[[pa.RecordBatch], NDArray[np.bool_]]:
    """Which rows, bool [rows], are held out: decided by the seed and the row's group alone."""
    sides: dict[str, bool] = {}

    def side(group: str) -> bool:
        if group not in sides:
            digest = hashlib.blake2b(f"{config.seed}/{group}".encode(), digest_size=8).digest()
            sides[group] = int.from_bytes(digest) < config.heldout * 2**64
        return sides[group]

    def choose(batch: pa.RecordBatch) -> NDArray[np.bool_]:
        return np.array([side(group) for group in batch.column(COLUMN[config.by]).to_pylist()])

    return choose


def _first_time(batch: pa.RecordBatch, seen: set[str]) -> NDArray[np.bool_]:
    is_new = []
    for id in batch.column("id").to_pylist():
        is_new.append(id not in seen)
        seen.add(id)
    return np.array(is_new, bool)


def _filtered(batch: pa.RecordBatch, keep: NDArray[np.bool_]) -> pa.RecordBatch:
    kept = batch.filter(pa.array(keep, pa.bool_()))
    return pa.RecordBatch.from_arrays(kept.columns, schema=COMPARISONS)
