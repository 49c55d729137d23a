"""A serving: what was offered to one rater, under a token that says nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from musicrl.preference.tables import clips, prompts, servings
from musicrl.types import Prompt, Side

A, B = clips.alias("a"), clips.alias("b")
OFFERS = select(
    *(servings.c.token, servings.c.served, *prompts.c),
    *(A.c.id, A.c.wav, A.c.seconds, B.c.id, B.c.wav, B.c.seconds),
).select_from(
    servings.join(prompts)
    .join(A, servings.c.clip_a == A.c.id)
    .outerjoin(B, servings.c.clip_b == B.c.id)
)
"""Every serving with its prompt and its one or two clips."""


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
    query = OFFERS.where(which, servings.c.rater == rater)
    row = connection.execute(query).one_or_none()
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
