"""The store: what was offered to listeners, what they played and what they answered.

An answer is in the database, flushed to the disk, before `choose` or `rate` returns; the same
answer again changes nothing, another one is refused. Knows nothing of HTTP, cookies or models.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Self

from sqlalchemy import Column, Connection, Engine, Table, and_, func, select
from sqlalchemy.dialects import postgresql, sqlite

from musicrl.preference.clip import PlayableClip
from musicrl.preference.database import READS, open_database
from musicrl.preference.gate import Span, heard_share, is_possible
from musicrl.preference.refusal import AlreadyAnswered, Impossible, NotHeard, UnknownServing
from musicrl.preference.serving import Serving, find_serving
from musicrl.preference.tables import choices, clips, plays, prompts, ratings, servings
from musicrl.types import Choice, Prompt, Side

Rows = list[dict[str, Any]]
Heard = Mapping[Side, float]
"""Share, 0 to 1, of each clip that was played."""
ROWS_AT_ONCE = 200


class Store:
    """A database of preferences. Safe to use from several threads and processes."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self._clock = clock
        self._turn = Lock()
        """Of this process's threads at writing: SQLite itself would let them poll for it."""

    @classmethod
    def open(cls, database: Path | str, *, clock: Callable[[], float] = time.time) -> Self:
        """The store at a path (SQLite) or a URL; errors as `open_database`."""
        return cls(open_database(database), clock=clock)

    def close(self) -> None:
        self.engine.dispose()

    def add_clips(self, new: Iterable[PlayableClip]) -> None:
        """Add clips with their prompts; those that are there already stay as they are.

        Raises ValueError naming a prompt's id under which another text is known.
        """
        rest = iter(new)
        while batch := list(islice(rest, ROWS_AT_ONCE)):
            with self._writes() as connection:
                self._add_prompts(connection, {clip.prompt.id: clip.prompt for clip in batch})
                self._insert_new(connection, clips, [_clip_row(clip) for clip in batch])

    def serve(
        self, *, rater: str, request: str, prompt: Prompt, clip_a: str, clip_b: str | None = None
    ) -> Serving:
        """Offer a pair in this order, or one clip. The same request again gets the same offer."""
        row = {
            "token": secrets.token_urlsafe(18),
            "rater": rater,
            "request": request,
            "prompt": prompt.id,
            "clip_a": clip_a,
            "clip_b": clip_b,
            "served": self._clock(),
        }
        with self._writes() as connection:
            self._insert_new(connection, servings, [row])
            found = find_serving(connection, rater, servings.c.request == request)
        assert found is not None
        return found

    def find(self, *, rater: str, request: str) -> Serving | None:
        """What was offered for a request before, if anything."""
        with self._reads() as connection:
            return find_serving(connection, rater, servings.c.request == request)

    def serving(self, *, rater: str, token: str) -> Serving:
        """What was offered under a token. Raises UnknownServing when not to this rater."""
        with self._reads() as connection:
            return _known(connection, rater, token)

    def play(
        self, *, rater: str, token: str, event: str, side: Side, started: float, ended: float
    ) -> Heard:
        """Note that a stretch of a clip was played, in seconds from its start; what was heard.

        The same event again counts once. Raises UnknownServing, or Impossible when the stretch is
        not one of the clip or longer, with those before it, than the time since the offer.
        """
        now = self._clock()
        row = {"token": token, "event": event, "side": side, "started": started, "ended": ended}
        with self._writes() as connection:
            offer = _known(connection, rater, token)
            if side not in offer.clips or not 0 <= started < ended <= offer.clips[side].seconds:
                raise Impossible(f"clip {side!r} has no stretch from {started:g} to {ended:g} s")
            self._insert_new(connection, plays, [{**row, "time": now}])
            spans = _spans(connection, token)
            if not is_possible([s for side in spans for s in spans[side]], now - offer.time):
                raise Impossible("more was played than time has passed")
            return _heard(offer, spans)

    def choose(self, *, rater: str, token: str, choice: Choice, minimum_share: float = 0.0) -> bool:
        """Keep the answer to a pair; False when the same one was kept before.

        Raises UnknownServing, NotHeard when a clip was played less than `minimum_share` (going on
        without a choice is free), AlreadyAnswered when another answer was kept.
        """
        with self._writes() as connection:
            offer = _known(connection, rater, token, num_clips=2)
            heard = _heard(offer, _spans(connection, token))
            row = {"token": token, "choice": choice, "time": self._clock()}
            shares = {"heard_a": heard["a"], "heard_b": heard["b"]}
            same = choices.c.token == token
            is_new = self._keep(connection, choices.c.choice, {**row, **shares}, same)
            if is_new and choice != "none":
                _check_heard(heard, minimum_share)
        return is_new

    def rate(self, *, rater: str, token: str, score: int, minimum_share: float = 0.0) -> bool:
        """Keep the mark, 1 to 5, of a single clip; returns and raises as `choose`."""
        with self._writes() as connection:
            offer = _known(connection, rater, token, num_clips=1)
            heard, clip = _heard(offer, _spans(connection, token)), offer.clips["a"].id
            row = {"token": token, "rater": rater, "clip": clip, "score": score}
            shares = {"heard": heard["a"], "time": self._clock()}
            same = and_(ratings.c.rater == rater, ratings.c.clip == clip)
            is_new = self._keep(connection, ratings.c.score, {**row, **shares}, same)
            if is_new:
                _check_heard(heard, minimum_share)
        return is_new

    def offered(self, rater: str) -> list[tuple[str, str | None]]:
        """The clips (a, b) of everything that a rater was offered."""
        query = select(servings.c.clip_a, servings.c.clip_b).where(servings.c.rater == rater)
        with self._reads() as connection:
            return [(a, b) for a, b in connection.execute(query)]

    def raters_of_clips(self) -> dict[str, set[str]]:
        """Who marked each clip that has any marks."""
        found: dict[str, set[str]] = {}
        with self._reads() as connection:
            for clip, rater in connection.execute(select(ratings.c.clip, ratings.c.rater)):
                found.setdefault(clip, set()).add(rater)
        return found

    def num_answers(self, rater: str | None = None) -> int:
        """Choices and marks of a rater (none: of all)."""
        of_rater = [] if rater is None else [servings.c.rater == rater]
        queries = [
            select(func.count()).select_from(answers.join(servings)).where(*of_rater)
            for answers in (choices, ratings)
        ]
        with self._reads() as connection:
            return sum(connection.scalar(query) or 0 for query in queries)

    @contextmanager
    def _writes(self) -> Iterator[Connection]:
        with self._turn, self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _reads(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(**READS) as connection:
            yield connection

    def _insert_new(self, connection: Connection, table: Table, rows: Rows) -> int:
        """Insert the rows whose keys are free; how many those were."""
        dialect = sqlite if self.engine.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(table).values(rows).on_conflict_do_nothing()
        key = next(iter(table.primary_key))  # a driver's own count of rows may be unknown
        return len(connection.execute(statement.returning(key)).all())

    def _keep(
        self, connection: Connection, answer: Column[Any], row: dict[str, Any], same: Any
    ) -> bool:
        """Insert an answer; False, and nothing done, when the same one is where `same` says."""
        if self._insert_new(connection, answer.table, [row]):
            return True
        kept = connection.scalar(select(answer).where(same))
        if kept != row[answer.name]:
            raise AlreadyAnswered(f"this was answered before, with {kept!r}")
        return False

    def _add_prompts(self, connection: Connection, new: Mapping[str, Prompt]) -> None:
        rows = [{"id": p.id, "text": p.text, "source": p.source} for p in new.values()]
        self._insert_new(connection, prompts, rows)
        query = select(prompts.c.id, prompts.c.text).where(prompts.c.id.in_(list(new)))
        for id, text in connection.execute(query):
            if text != new[id].text:
                raise ValueError(f"prompt {id!r} is {text!r} in the store, not {new[id].text!r}")


def _clip_row(playable: PlayableClip) -> dict[str, Any]:
    clip = playable.clip
    S, K = clip.tokens.shape
    return {
        "id": clip.id,
        "prompt": playable.prompt.id,
        "tokens": clip.tokens.astype("<i2").tobytes(),
        "steps": S,
        "streams": K,
        "policy": clip.policy,
        "seed": str(playable.seed),
        "wav": playable.wav,
        "seconds": playable.seconds,
    }


def _known(
    connection: Connection, rater: str, token: str, *, num_clips: int | None = None
) -> Serving:
    """Raises UnknownServing for what was not served to this rater, or not as so many clips."""
    found = find_serving(connection, rater, servings.c.token == token)
    if found is None or num_clips not in (None, len(found.clips)):
        raise UnknownServing
    return found


def _spans(connection: Connection, token: str) -> dict[Side, list[Span]]:
    query = select(plays.c.side, plays.c.started, plays.c.ended).where(plays.c.token == token)
    spans: dict[Side, list[Span]] = {"a": [], "b": []}
    for side, started, ended in connection.execute(query):
        spans[side].append((started, ended))
    return spans


def _heard(offer: Serving, spans: Mapping[Side, list[Span]]) -> Heard:
    return {side: heard_share(spans[side], clip.seconds) for side, clip in offer.clips.items()}


def _check_heard(heard: Heard, minimum_share: float) -> None:
    missing = [side for side, share in heard.items() if share < minimum_share]
    if missing:
        shares = ", ".join(f"clip {side}: {heard[side]:.0%}" for side in missing)
        raise NotHeard(f"listen to at least {minimum_share:.0%} first ({shares})")
