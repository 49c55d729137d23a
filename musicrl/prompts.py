"""Prompts: reading them, drawing the ones of a training step, pairing clips with wrong captions.

Every function is pure: what is drawn is decided by the seed and the step alone, so a resumed or a
distributed run draws the same prompts. Knows nothing of audio or models.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from musicrl.dataset_folder import read_dataset
from musicrl.types import Prompt

SHIPPED = Path(__file__).parent / "data" / "tiny" / "prompts.parquet"
FREEFORM = Path(__file__).parent / "data" / "freeform.csv"
"""101 free-form prompts of 3 to 25 words, ten styles with ten or eleven each: of the shape of the
paper's evaluation set (section 4.3, appendix A), written for this project."""
ATTRIBUTES = ("instrument", "tempo", "texture", "genre", "loudness", "mode")
"""Columns that say what a caption asks for; all are optional."""
CAPTION, HELDOUT_FLAG = "caption", "is_audioset_eval"
"""MusicCaps' columns: the text, and whether a row is of the evaluation part. Its table, as it is
published, is read as it is."""


def load_prompts(path: Path | None = None, split: str | None = None) -> tuple[Prompt, ...]:
    """Prompts of a Parquet, .csv or .txt (one a line) file, or of a folder that `datasets` saved;
    none: the shipped captions.

    `split` keeps the rows whose column `split` holds that value; a file without the column is taken
    whole. A table without the column `text` may be of MusicCaps' form: `caption` is the text, and
    rows that `is_audioset_eval` marks are `heldout`, the others `train`. Of a folder's splits all
    but `train` are `heldout`, where no column says more. The order is the file's. Raises
    FileNotFoundError when the file is missing and ValueError naming the file and the column or line
    when it cannot be used.
    """
    path = path or SHIPPED
    if not path.exists():
        raise FileNotFoundError(f"no prompts at {path}")
    rows = _numbered(path)
    if split is not None and any("split" in row for _, row in rows):
        rows = [(line, row) for line, row in rows if row.get("split") == split]
        if not rows:
            raise ValueError(f"{path} has no prompts of split {split!r}")
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    prompts = tuple(_prompt(path, line, row) for line, row in rows)
    _check_ids(path, rows, prompts)
    return prompts


def draw(prompts: Sequence[Prompt], seed: int, step: int, count: int) -> tuple[Prompt, ...]:
    """The `count` prompts of a step: every prompt once an epoch, in an order of its own.

    A pure function of (seed, step). A step that crosses the end of an epoch may hold a prompt
    twice.
    """
    if not prompts:
        raise ValueError("there are no prompts to draw from")
    positions = range(step * count, (step + 1) * count)
    orders = {
        epoch: np.random.default_rng((seed, epoch)).permutation(len(prompts))
        for epoch in {position // len(prompts) for position in positions}
    }
    return tuple(prompts[orders[p // len(prompts)][p % len(prompts)]] for p in positions)


def mismatched(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """For every prompt the prompt of another clip: one fixed rotation of the list.

    The first rotation is taken, from half the list on, under which every pair differs in text and
    in its attributes as a whole; when there is none, the one with the fewest pairs alike. Raises
    ValueError for fewer than two different prompts.
    """
    P = len(prompts)
    if len({prompt.text for prompt in prompts}) < 2:
        raise ValueError("mismatched pairs need at least two different prompts")
    shifts = [1 + (P // 2 - 1 + i) % (P - 1) for i in range(P - 1)]
    shift = min(shifts, key=lambda s: sum(map(_alike, prompts, _rotate(prompts, s))))
    return _rotate(prompts, shift)


def attribute(prompt: Prompt, name: str) -> str | None:
    """What the caption is known to ask for under `name`, if anything."""
    return dict(prompt.attributes).get(name)


def _rotate(prompts: Sequence[Prompt], shift: int) -> tuple[Prompt, ...]:
    return (*prompts[shift:], *prompts[:shift])


def _alike(a: Prompt, b: Prompt) -> bool:
    return a.text == b.text or (bool(a.attributes) and a.attributes == b.attributes)


def _numbered(path: Path) -> list[tuple[int, Mapping[str, str | None]]]:
    """Rows of a file with their numbers: lines of a text, rows of a table, from 1."""
    if path.is_dir():
        return _read_folder(path)
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".txt": _read_txt}
    if path.suffix not in readers:
        raise ValueError(f"{path}: prompts must be .parquet, .csv or .txt, not {path.suffix!r}")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path} is not UTF-8 text: {fault.reason}") from fault


def _read_txt(path: Path) -> list[tuple[int, Mapping[str, str | None]]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(n, {"text": line.strip()}) for n, line in enumerate(lines, 1) if line.strip()]


def _read_csv(path: Path) -> list[tuple[int, Mapping[str, str | None]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        is_captions = _is_captions(path, reader.fieldnames or ())
        rows: list[tuple[int, Mapping[str, str | None]]] = []
        for row in reader:
            if None in row:
                raise ValueError(f"{path}, line {reader.line_num}: more cells than columns")
            rows.append((reader.line_num, _from_captions(path, row) if is_captions else row))
    return rows


def _read_parquet(path: Path) -> list[tuple[int, Mapping[str, str | None]]]:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as fault:
        raise ValueError(f"{path} is not a readable Parquet file: {fault}") from fault
    return list(enumerate(_table_rows(path, table), 1))


def _read_folder(path: Path) -> list[tuple[int, Mapping[str, str | None]]]:
    rows: list[Mapping[str, str | None]] = []
    for split, table in read_dataset(path):
        own = {} if split is None else {"split": "train" if split == "train" else "heldout"}
        rows += [
            {**own, **row} for row in _table_rows(path if split is None else path / split, table)
        ]
    return list(enumerate(rows, 1))


def _table_rows(path: Path, table: pyarrow.Table) -> list[Mapping[str, str | None]]:
    is_captions = _is_captions(path, table.column_names)
    texts = (CAPTION, HELDOUT_FLAG) if is_captions else ("text",)
    own = ("id", *texts, "split", "source", *ATTRIBUTES)
    known = [column for column in own if column in table.column_names]
    for column in known:
        kind = table.schema.field(column).type
        if column == HELDOUT_FLAG:
            table = table.set_column(
                table.column_names.index(column), column, table[column].cast(pyarrow.string())
            )
        elif kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.null()):
            raise ValueError(f"{path}: column {column!r} must hold text, not {kind}")
    rows: list[Mapping[str, str | None]] = table.select(known).to_pylist()
    return [_from_captions(path, row) for row in rows] if is_captions else rows


def _is_captions(path: Path, columns: Sequence[str]) -> bool:
    """Whether a table has its texts as MusicCaps has them. Raises ValueError when it has none."""
    if "text" in columns or CAPTION in columns:
        return "text" not in columns
    raise ValueError(
        f"{path} has no column 'text' or {CAPTION!r}; its columns: {', '.join(columns) or 'none'}"
    )


def _from_captions(path: Path, row: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """A row of MusicCaps under this project's names."""
    found = {**row, "text": row[CAPTION]}
    if HELDOUT_FLAG in row and "split" not in row:
        splits = {"true": "heldout", "false": "train"}
        value = (row[HELDOUT_FLAG] or "").lower()
        if value not in splits:
            raise ValueError(f"{path}: column {HELDOUT_FLAG!r} holds {value!r}, not true or false")
        found["split"] = splits[value]
    return found


def _prompt(path: Path, line: int, row: Mapping[str, str | None]) -> Prompt:
    text = (row.get("text") or "").strip()
    if not text:
        raise ValueError(f"{path}, line {line}: the prompt is empty")
    values = ((name, row.get(name)) for name in ATTRIBUTES)
    return Prompt(
        id=row.get("id") or f"{path.stem}-{line}",
        text=text,
        source=row.get("source") or path.stem,
        attributes=tuple((name, value) for name, value in values if value),
    )


def _check_ids(
    path: Path, rows: Sequence[tuple[int, Mapping[str, str | None]]], prompts: Sequence[Prompt]
) -> None:
    lines: dict[str, int] = {}
    for (line, _), prompt in zip(rows, prompts, strict=True):
        if prompt.id in lines:
            first = lines[prompt.id]
            raise ValueError(f"{path}, line {line}: id {prompt.id!r} is taken by line {first}")
        lines[prompt.id] = line
