"""A serving: what was offered to one rater, under a token that says nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from musicrl.preference.tables import clips, prompts, servings
from musicrl.types import Prompt, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedClip:
    """What the page needs to play a clip."""

    id: str
    wav: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One offer to one rater: a pair, or a single clip under "a"."""

    token: str
    """What the page knows it by."""
    prompt: Prompt
    clips: Mapping[Side, ServedClip]
    time: float
    """When it was offered, seconds since 1970."""


def find_serving(connection: Connection, rater: str, which: ColumnElement[bool]) -> Serving | None:
    """The serving of a rater that a condition on `servings` singles out, if any."""
    a, b = clips.alias("a"), clips.alias("b")
    joined = servings.join(prompts).join(a, servings.c.clip_a == a.c.id)
    columns = [
        *(servings.c.token, servings.c.served, *prompts.c),
        *(a.c.id, a.c.wav, a.c.seconds, b.c.id, b.c.wav, b.c.seconds),
    ]
    query = select(*columns).select_from(joined.outerjoin(b, servings.c.clip_b == b.c.id))
    row = connection.execute(query.where(which, servings.c.rater == rater)).one_or_none()
    if row is None:
        return None
    values: list[Any] = [*row]
    token, served, prompt, text, source, *clip_a, id_b, wav_b, seconds_b = values
    offered: dict[Side, ServedClip] = {"a": _served(*clip_a)}
    if id_b is not None:
        offered["b"] = _served(id_b, wav_b, seconds_b)
    return Serving(
        token=token,
        prompt=Prompt(id=prompt, text=text, source=source),
        clips=offered,
        time=served,
    )


def _served(id: str, wav: str, seconds: float) -> ServedClip:
    return ServedClip(id=id, wav=wav, seconds=seconds)
