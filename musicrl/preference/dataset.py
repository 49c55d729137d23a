"""Files of preferences: Parquet, written in bounded memory, read whole or not at all.

Pages carry checksums, and a file is checked from end to end before its first row is handed on.
What the columns mean stands in FORMAT.md beside this file. Knows nothing of databases or models.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from musicrl.preference.faults import batch_fault
from musicrl.preference.rows import comparison_batch, rating_batch, to_comparisons, to_ratings
from musicrl.preference.schema import COMPARISONS, RATINGS, format_of
from musicrl.types import Comparison, Rating

Row = TypeVar("Row")
logger = logging.getLogger(__name__)
ROWS_PER_GROUP = 2048
"""What a writer and a reader hold at once: 3 MB of the tiny world's comparisons."""
UNREADABLE = (pa.ArrowException, OSError)


class DatasetWriter:
    """Writes batches of one schema to a file, which appears when all of it is on the disk.

    Raises ValueError for rows of simulated raters in a file whose name does not say so.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.num_rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._writer = pq.ParquetWriter(
            self._partial, schema, compression="zstd", write_page_checksum=True
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch, as row groups of at most `ROWS_PER_GROUP`."""
        fault = batch_fault(batch)
        if fault is not None:
            raise ValueError(f"{self.path} cannot hold {fault}")
        if "simulated" not in self.path.name and _holds_simulated(batch):
            raise ValueError(
                f"{self.path} would hold simulated raters: its name must contain 'simulated'"
            )
        self._writer.write_batch(batch, row_group_size=ROWS_PER_GROUP)
        self.num_rows += batch.num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        if kind is not None:
            self._partial.unlink()
            return
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self.path)


@dataclass(frozen=True, kw_only=True)
class CheckedFiles:
    """Files that may be read, and what is wrong with the others."""

    whole: tuple[Path, ...]
    faults: dict[Path, str] = field(default_factory=dict)


def write_comparisons(path: Path, comparisons: Iterable[Comparison]) -> int:
    """Write a file of comparisons, whole or not at all; how many there are."""
    with DatasetWriter(path, COMPARISONS) as writer:
        for rows in _groups(comparisons):
            writer.write(comparison_batch(rows))
    return writer.num_rows


def write_ratings(path: Path, ratings: Iterable[Rating]) -> int:
    """Write a file of ratings, whole or not at all; how many there are."""
    with DatasetWriter(path, RATINGS) as writer:
        for rows in _groups(ratings):
            writer.write(rating_batch(rows))
    return writer.num_rows


def read_comparisons(
    paths: Sequence[Path], *, skip_bad: bool = False
) -> Iterator[tuple[Comparison, ...]]:
    """The comparisons of files, a batch at a time; errors as `check_files`, before the first."""
    for path in check_files(paths, COMPARISONS, skip_bad=skip_bad).whole:
        yield from map(to_comparisons, read_batches(path))


def read_ratings(paths: Sequence[Path], *, skip_bad: bool = False) -> Iterator[tuple[Rating, ...]]:
    """The ratings of files, as `read_comparisons`."""
    for path in check_files(paths, RATINGS, skip_bad=skip_bad).whole:
        yield from map(to_ratings, read_batches(path))


def check_files(
    paths: Sequence[Path], schema: pa.Schema = COMPARISONS, *, skip_bad: bool = False
) -> CheckedFiles:
    """Check every file from end to end.

    Raises ValueError or FileNotFoundError naming the first bad file; with `skip_bad` the bad ones
    are logged and left out, and only a list without a single whole file is refused.
    """
    whole, faults = [], {}
    for path in paths:
        try:
            check_file(path, schema)
        except (ValueError, FileNotFoundError) as fault:
            if not skip_bad:
                raise
            logger.warning("skipped: %s", fault)
            faults[path] = str(fault)
        else:
            whole.append(path)
    if not whole:
        raise ValueError(f"no file of {format_of(schema)} among {len(paths)}")
    return CheckedFiles(whole=tuple(whole), faults=faults)


def check_file(path: Path, schema: pa.Schema = COMPARISONS) -> int:
    """Rows of a file that was read to its end and breaks no rule.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it: torn, damaged
    (by its checksums), of another format, with other columns or a row against the rules.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of preferences at {path}")
    rows = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_schema(path, file.schema_arrow, schema)
            for batch in file.iter_batches(ROWS_PER_GROUP):
                batch.validate(full=True)
                if (fault := batch_fault(batch)) is not None:
                    raise ValueError(f"{path}, from row {rows}, {fault}")
                rows += batch.num_rows
    except UNREADABLE as fault:
        raise ValueError(f"{path} is not a whole Parquet file: {fault}") from fault
    return rows


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a file that was checked, a bounded batch at a time."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield from file.iter_batches(ROWS_PER_GROUP)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rest = iter(rows)
    while group := list(islice(rest, ROWS_PER_GROUP)):
        yield group


def _check_schema(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    if format_of(found) != format_of(wanted):
        raise ValueError(f"{path} holds the format {format_of(found)!r}, not {format_of(wanted)!r}")
    for name in wanted.names:
        if name not in found.names:
            raise ValueError(f"{path} lacks the column {name!r}")
        if found.field(name).type != wanted.field(name).type:
            kind = found.field(name).type
            raise ValueError(f"{path}: column {name!r} holds {kind}, not {wanted.field(name).type}")


def _holds_simulated(batch: pa.RecordBatch) -> bool:
    return "simulated" in batch.schema.names and bool(pc.any(batch.column("simulated")).as_py())
