"""The tables of the store: what a listener was offered, played and answered.

    prompts 1-n clips                 what there is to hear
    servings  n-1 clips (a and b)     one offer to one rater: a pair in its order, or a single clip
    plays     n-1 servings            stretches of a clip that were played
    choices   1-1 servings            the answer to a pair; a trophy is a choice other than "none"
    ratings   1-1 servings            the answer to a single clip

Column types are those that SQLite and PostgreSQL share. Times are UTC, seconds since 1970. Nothing
here says who a rater is: a pseudonym is all there is.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

prompts = Table(
    "prompts",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("text", Text, nullable=False),
    Column("source", Text, nullable=False),
)

clips = Table(
    "clips",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("prompt", ForeignKey("prompts.id"), nullable=False),
    Column("tokens", LargeBinary, nullable=False),  # int16, little-endian, [steps, streams]
    Column("steps", Integer, nullable=False),
    Column("streams", Integer, nullable=False),
    Column("policy", Text, nullable=False),
    Column("seed", String(20), nullable=False),  # 64 bits, decimal: SQLite has no unsigned integer
    Column("wav", Text, nullable=False),  # file name inside the folder of clips
    Column("seconds", Double, nullable=False),
)

servings = Table(
    "servings",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("rater", String(64), nullable=False),
    Column("request", String(64), nullable=False),  # the page's own number of its request
    Column("prompt", ForeignKey("prompts.id"), nullable=False),
    Column("clip_a", ForeignKey("clips.id"), nullable=False),
    Column("clip_b", ForeignKey("clips.id")),  # null: a single clip, to be rated
    Column("served", Double, nullable=False),
    UniqueConstraint("rater", "request"),
)

plays = Table(
    "plays",
    metadata,
    Column("token", ForeignKey("servings.token"), primary_key=True),
    Column("event", String(64), primary_key=True),  # the page's own number of the event
    Column("side", String(1), nullable=False),
    Column("started", Double, nullable=False),  # seconds from the clip's start
    Column("ended", Double, nullable=False),
    Column("time", Double, nullable=False),
    CheckConstraint("side IN ('a', 'b')"),
)

choices = Table(
    "choices",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("token", ForeignKey("servings.token"), nullable=False, unique=True),
    Column("choice", String(4), nullable=False),
    Column("heard_a", Double, nullable=False),
    Column("heard_b", Double, nullable=False),
    Column("time", Double, nullable=False),
    CheckConstraint("choice IN ('a', 'b', 'none')"),
)

ratings = Table(
    "ratings",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("token", ForeignKey("servings.token"), nullable=False, unique=True),
    Column("rater", String(64), nullable=False),
    Column("clip", ForeignKey("clips.id"), nullable=False),
    Column("score", Integer, nullable=False),
    Column("heard", Double, nullable=False),
    Column("time", Double, nullable=False),
    UniqueConstraint("rater", "clip"),
    CheckConstraint("score BETWEEN 1 AND 5"),
)

Index("clips_of_prompt", clips.c.prompt)
Index("servings_of_rater", servings.c.rater)
Index("ratings_of_clip", ratings.c.clip)
