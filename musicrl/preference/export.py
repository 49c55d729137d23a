"""From the store to files: the answers of listeners as Parquet, in bounded memory.

Raters leave under a digest of the pseudonym that the store knows them by, so that a file cannot be
joined with a cookie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any, Literal

import numpy as np
from sqlalchemy import ColumnElement, Select, Table, and_, func, select

from musicrl.lock import held
from musicrl.preference.cursor import Cursor, Part
from musicrl.preference.database import READS, database_file
from musicrl.preference.dataset import write_comparisons, write_ratings
from musicrl.preference.store import Store
from musicrl.preference.tables import choices, clips, prompts, ratings, servings
from musicrl.types import Comparison, Prompt, Rating, TokenClip

Span = tuple[int, int | None]
"""Answers of a number above the first, up to the second (none: all)."""
EVERYTHING: Span = (0, None)
SETTLE_SECONDS = 60.0
"""In which a transaction that has begun to keep an answer ends."""
ROWS_AT_ONCE = 500
"""Fetched from the database."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the answers of a database to a Parquet file."""

    database: str = "preferences/preferences.db"
    """File of SQLite, or URL of another database."""
    what: Literal["comparisons", "ratings"] = "comparisons"
    out: Path | None = None
    """File to write (none: comparisons.parquet or ratings.parquet)."""
    since: Path | None = None
    """Cursor file, made if missing: only answers after it are written, to a new part beside it,
    and it moves on (`out` is not read)."""
    minimum_share: float = 0.5
    """Leave out what was answered with less of a clip heard (paper section 3.3: only who listened
    to both)."""
    undecided: bool = False
    """Write pairs without a trophy too; the paper's pairs all have one."""

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_share <= 1:
            raise ValueError(f"minimum_share must be 0 to 1, got {self.minimum_share}")
        if self.since is not None and self.out is not None:
            raise ValueError("out names one file, since a cursor with parts: give one of them")

    @property
    def selection(self) -> str:
        """What decides which answers are written."""
        return f"{self.what}, minimum_share {self.minimum_share:g}, undecided {self.undecided}"

    @property
    def file(self) -> Path:
        return self.out or Path(f"{self.what}.parquet")


def export(config: ExportConfig) -> int:
    """Write the file, or the part after the cursor, whole or not at all; how many answers it holds.

    Raises FileNotFoundError when there is no database, and ValueError where the cursor is of
    another database or selection.
    """
    path = database_file(config.database)
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"no database at {path}")
    store = Store.open(config.database)
    try:
        if config.since is None:
            return _write(config.file, store, config, EVERYTHING)
        with held(config.since.parent):
            return _export_part(config.since, store, config)
    finally:
        store.close()


def _export_part(path: Path, store: Store, config: ExportConfig) -> int:
    """Write what is new as the next part, if anything is, and move the cursor."""
    cursor = Cursor.read(path) if path.exists() else Cursor(selection=config.selection)
    if cursor.selection != config.selection:
        raise ValueError(f"{path} is of other answers: {cursor.selection}, not {config.selection}")
    table = choices if config.what == "comparisons" else ratings
    if cursor.number and _answer(store, table, cursor.number) != cursor.answer:
        raise ValueError(f"{path} is the cursor of another database than {config.database}")
    newest = _newest(store, table)
    if newest <= cursor.number:
        return 0
    answer, name = _answer(store, table, newest), f"{config.what}-{len(cursor.parts) + 1:06d}"
    file = path.parent / f"{name}.parquet"
    rows = _write(file, store, config, (cursor.number, newest))
    parts = (*cursor.parts, Part(file=file.name, rows=rows, answer=answer))
    if not rows:  # all were unheard or undecided: nothing to read
        file.unlink()
        parts = cursor.parts
    replace(cursor, number=newest, answer=answer, parts=parts).write(path)
    return rows


def _write(file: Path, store: Store, config: ExportConfig, span: Span) -> int:
    if config.what == "comparisons":
        return write_comparisons(file, comparisons(store, config, span))
    return write_ratings(file, marks(store, config, span))


def _newest(store: Store, table: Table) -> int:
    """Number of the newest answer before which no other can appear any more (0: none).

    SQLite writes one after the other. Elsewhere a transaction may end after one of a higher number:
    answers are left for the next export until those beside them have had time to end.
    """
    newest = select(func.max(table.c.number))
    if store.engine.dialect.name != "sqlite":
        settling = select(func.min(table.c.number)).where(table.c.time > time() - SETTLE_SECONDS)
        limit = settling.scalar_subquery()
        newest = newest.where((table.c.number < limit) | limit.is_(None))
    with store.engine.connect().execution_options(**READS) as connection:
        return connection.scalar(newest) or 0


def _answer(store: Store, table: Table, number: int) -> str:
    """Digest of the answer of a number; of nothing where there is none."""
    with store.engine.connect().execution_options(**READS) as connection:
        return _digest(
            connection.scalar(select(table.c.token).where(table.c.number == number)) or ""
        )


def comparisons(
    store: Store, config: ExportConfig, span: Span = EVERYTHING
) -> Iterator[Comparison]:
    """The choices that `config` asks for, in the order in which they were made."""
    a, b = clips.alias("a"), clips.alias("b")
    joined = choices.join(servings).join(prompts).join(a, servings.c.clip_a == a.c.id)
    heard = (choices.c.heard_a, choices.c.heard_b)
    answer = (choices.c.token, servings.c.rater, choices.c.time, choices.c.choice, *heard)
    query = select(*answer, prompts.c.id, prompts.c.text, *_columns(a), *_columns(b))
    query = query.select_from(joined.join(b, servings.c.clip_b == b.c.id))
    query = query.where(and_(*(share >= config.minimum_share for share in heard)))
    query = query.where(*_inside(choices, span))
    if not config.undecided:
        query = query.where(choices.c.choice != "none")
    for row in _stream(store, query.order_by(choices.c.number)):
        token, rater, made, choice, heard_a, heard_b, prompt, text, *clip = row
        yield Comparison(
            id=_digest(token),
            prompt=Prompt(id=prompt, text=text),
            clip_a=_token_clip(*clip[:5]),
            clip_b=_token_clip(*clip[5:]),
            choice=choice,
            heard_a=heard_a,
            heard_b=heard_b,
            rater=_pseudonym(rater),
            simulated=False,
            time=_time(made),
        )


def marks(store: Store, config: ExportConfig, span: Span = EVERYTHING) -> Iterator[Rating]:
    """The ratings that `config` asks for, in the order in which they were made."""
    answer = (ratings.c.token, ratings.c.rater, ratings.c.time, ratings.c.score, ratings.c.heard)
    query = select(*answer, prompts.c.id, prompts.c.text, *_columns(clips))
    query = query.select_from(
        ratings.join(clips, ratings.c.clip == clips.c.id).join(
            prompts, clips.c.prompt == prompts.c.id
        )
    ).where(ratings.c.heard >= config.minimum_share, *_inside(ratings, span))
    for row in _stream(store, query.order_by(ratings.c.number)):
        token, rater, made, score, heard, prompt, text, *clip = row
        yield Rating(
            id=_digest(token),
            prompt=Prompt(id=prompt, text=text),
            clip=_token_clip(*clip),
            score=score,
            heard=heard,
            rater=_pseudonym(rater),
            simulated=False,
            time=_time(made),
        )


def _inside(table: Table, span: Span) -> list[ColumnElement[bool]]:
    after, upto = span
    return [table.c.number > after, *([] if upto is None else [table.c.number <= upto])]


def _columns(table: Any) -> list[Any]:
    return [table.c[name] for name in ("id", "tokens", "steps", "streams", "policy")]


def _stream(store: Store, query: Select[Any]) -> Iterator[list[Any]]:
    options = {**READS, "yield_per": ROWS_AT_ONCE}
    with store.engine.connect().execution_options(**options) as connection:
        yield from map(list, connection.execute(query))


def _token_clip(id: str, tokens: bytes, steps: int, streams: int, policy: str) -> TokenClip:
    grid = np.frombuffer(tokens, "<i2").reshape(steps, streams).astype(np.int16, copy=False)
    return TokenClip(id=id, tokens=grid, policy=policy)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _pseudonym(rater: str) -> str:
    return f"rater-{_digest(rater)}"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
