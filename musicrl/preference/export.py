"""From the store to files: the answers of listeners as Parquet, in bounded memory.

Raters leave under a digest of the pseudonym that the store knows them by, so that a file cannot be
joined with a cookie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sqlalchemy import Select, and_, select

from musicrl.preference.database import READS, database_file
from musicrl.preference.dataset import write_comparisons, write_ratings
from musicrl.preference.store import Store
from musicrl.preference.tables import choices, clips, prompts, ratings, servings
from musicrl.types import Comparison, Prompt, Rating, TokenClip

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
    minimum_share: float = 0.5
    """Leave out what was answered with less of a clip heard (paper section 3.3: only who listened
    to both)."""
    undecided: bool = False
    """Write pairs without a trophy too; the paper's pairs all have one."""

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_share <= 1:
            raise ValueError(f"minimum_share must be 0 to 1, got {self.minimum_share}")

    @property
    def file(self) -> Path:
        return self.out or Path(f"{self.what}.parquet")


def export(config: ExportConfig) -> int:
    """Write the file, whole or not at all; how many answers it holds.

    Raises FileNotFoundError when there is no database.
    """
    path = database_file(config.database)
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"no database at {path}")
    store = Store.open(config.database)
    try:
        if config.what == "comparisons":
            return write_comparisons(config.file, comparisons(store, config))
        return write_ratings(config.file, marks(store, config))
    finally:
        store.close()


def comparisons(store: Store, config: ExportConfig) -> Iterator[Comparison]:
    """The choices that `config` asks for, in the order in which they were made."""
    a, b = clips.alias("a"), clips.alias("b")
    joined = choices.join(servings).join(prompts).join(a, servings.c.clip_a == a.c.id)
    heard = (choices.c.heard_a, choices.c.heard_b)
    answer = (choices.c.token, servings.c.rater, choices.c.time, choices.c.choice, *heard)
    query = select(*answer, prompts.c.id, prompts.c.text, *_columns(a), *_columns(b))
    query = query.select_from(joined.join(b, servings.c.clip_b == b.c.id))
    query = query.where(and_(*(share >= config.minimum_share for share in heard)))
    if not config.undecided:
        query = query.where(choices.c.choice != "none")
    for row in _stream(store, query.order_by(choices.c.number)):
        token, rater, time, choice, heard_a, heard_b, prompt, text, *clip = row
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
            time=_time(time),
        )


def marks(store: Store, config: ExportConfig) -> Iterator[Rating]:
    """The ratings that `config` asks for, in the order in which they were made."""
    answer = (ratings.c.token, ratings.c.rater, ratings.c.time, ratings.c.score, ratings.c.heard)
    query = select(*answer, prompts.c.id, prompts.c.text, *_columns(clips))
    query = query.select_from(
        ratings.join(clips, ratings.c.clip == clips.c.id).join(
            prompts, clips.c.prompt == prompts.c.id
        )
    ).where(ratings.c.heard >= config.minimum_share)
    for row in _stream(store, query.order_by(ratings.c.number)):
        token, rater, time, score, heard, prompt, text, *clip = row
        yield Rating(
            id=_digest(token),
            prompt=Prompt(id=prompt, text=text),
            clip=_token_clip(*clip),
            score=score,
            heard=heard,
            rater=_pseudonym(rater),
            simulated=False,
            time=_time(time),
        )


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
