"""Columns of the Parquet files of preferences; FORMAT.md beside this file says what each means.

A file names its format in its metadata, so that one of another kind is refused by name.
"""

from __future__ import annotations

import pyarrow as pa

FORMAT_KEY = b"musicrl.format"
SIMULATED = "simulated-"
"""Opens the pseudonym of every simulated rater, and no other."""


def _schema(format: str, *columns: tuple[str, pa.DataType]) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns]
    return pa.schema(fields, metadata={FORMAT_KEY: format.encode()})


def _clip(suffix: str = "") -> list[tuple[str, pa.DataType]]:
    return [
        (f"clip{suffix}", pa.string()),
        (f"tokens{suffix}", pa.list_(pa.field("element", pa.int16(), nullable=False))),
        (f"steps{suffix}", pa.int32()),
        (f"streams{suffix}", pa.int32()),
        (f"policy{suffix}", pa.string()),
    ]


PROMPT = [("prompt_id", pa.string()), ("prompt", pa.string())]
RATER = [
    ("rater", pa.string()),
    ("simulated", pa.bool_()),
    ("time", pa.timestamp("us", tz="UTC")),
]

COMPARISONS = _schema(
    "comparisons/1",
    ("id", pa.string()),
    *PROMPT,
    *_clip("_a"),
    *_clip("_b"),
    ("choice", pa.string()),
    ("heard_a", pa.float32()),
    ("heard_b", pa.float32()),
    *RATER,
)
RATINGS = _schema(
    "ratings/1",
    ("id", pa.string()),
    *PROMPT,
    *_clip(),
    ("score", pa.int8()),
    ("heard", pa.float32()),
    *RATER,
)
POOL = _schema(
    "pool/1",
    *PROMPT,
    ("source", pa.string()),
    *_clip(),
    ("seed", pa.uint64()),
    ("wav", pa.string()),
    ("seconds", pa.float64()),
)


def format_of(schema: pa.Schema) -> str:
    """The format that a file names, or 'none'."""
    name: bytes = (schema.metadata or {}).get(FORMAT_KEY, b"none")
    return name.decode(errors="replace")
