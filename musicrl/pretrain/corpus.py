"""Scores: music21's core corpus to one compact table of notes, one row a piece.

Only the collections in `SOURCES` are read: tunes and chorales in the public domain whose
transcriptions carry no non-commercial or unclear licence. This runs when the shipped table is
rebuilt (music21 is needed only then); everything after it reads the Parquet file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from musicrl.pretrain.progress import track

TICKS_PER_QUARTER = 48
MIN_NOTES = 12
MAX_PARTS = 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """One collection of the corpus, with the words captions may use for it."""

    folder: str
    suffix: str
    title: str
    licence: str


SOURCES = {
    "ryan": Source(
        folder="ryansMammoth",
        suffix=".abc",
        title="Ryan's Mammoth Collection of Fiddle Tunes (1883)",
        licence="public domain; ABC transcription by John Chambers and contributors",
    ),
    "oneill": Source(
        folder="oneills1850",
        suffix=".abc",
        title="O'Neill's Music of Ireland (1903)",
        licence="public domain; ABC transcription by John Chambers and contributors",
    ),
    "aird": Source(
        folder="airdsAirs",
        suffix=".abc",
        title="Aird's Selection of Scotch, English, Irish and Foreign Airs (1778-1801)",
        licence="public domain; ABC transcription by Jack Campin",
    ),
    "bach": Source(
        folder="bach",
        suffix=".mxl",
        title="J. S. Bach, four-part chorales (18th century)",
        licence="public domain; MusicXML encoding distributed with music21 (BSD)",
    ),
}

DANCES = {
    "reel": "reel",
    "jig": "jig",
    "double jig": "jig",
    "slip jig": "slip jig",
    "slipjig": "slip jig",
    "hornpipe": "hornpipe",
    "strathspey": "strathspey",
    "clog": "clog",
    "highland fling": "fling",
    "fling": "fling",
    "air": "air",
    "waltz": "waltz",
    "march": "march",
}
"""The `R:` field of an ABC tune to the dance named in captions; others name none."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("title", pa.string()),
        ("licence", pa.string()),
        ("dance", pa.string()),
        ("tune", pa.string()),
        ("part", pa.list_(pa.int8())),
        ("onset", pa.list_(pa.int32())),
        ("duration", pa.list_(pa.int16())),
        ("pitch", pa.list_(pa.int8())),
    ]
)
"""Onsets and durations in ticks (1/48 quarter note), pitch in MIDI numbers, part 0 = top."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Parsing of the scores; needs music21 (`pip install "musicrl[corpus]"`)."""

    notes: Path = Path("worlds/notes.parquet")
    """Note table to write."""
    processes: int = 2


def build_corpus(config: CorpusConfig) -> dict[str, float]:
    """Parse every source of the installed music21 corpus and write the note table.

    Returns the number of pieces. Raises ImportError when music21 is not installed.
    """
    path = config.notes
    jobs = list(corpus_files())
    rows: list[dict[str, Any]] = []
    with get_context("fork").Pool(config.processes) as pool:
        for parsed in track(
            pool.imap_unordered(_parse_file, jobs), description="parsing scores", total=len(jobs)
        ):
            rows += parsed
    rows.sort(key=lambda row: str(row["id"]))
    _name_tunes(rows)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd", compression_level=19)
    partial.replace(path)
    return {"pieces": float(len(rows))}


def corpus_files() -> Iterator[tuple[str, str]]:
    """(source name, file) of every file of `SOURCES` in the installed music21."""
    from music21 import corpus

    paths = sorted(str(path) for path in corpus.getCorePaths())
    for name, source in SOURCES.items():
        for path in paths:
            if f"/{source.folder}/" in path and path.endswith(source.suffix):
                yield name, path


def _parse_file(job: tuple[str, str]) -> list[dict[str, Any]]:
    from music21 import converter

    name, path = job
    try:
        work = converter.parse(path, forceSource=True)
    except Exception as fault:  # noqa: BLE001  (music21 raises many types; the piece is left out)
        print(f"left out {Path(path).name}: {fault!r}"[:120])
        return []
    scores = list(work.scores) if "Opus" in work.classes else [work]
    texts = _abc_tunes(path) if path.endswith(".abc") else []
    rows = []
    for index, score in enumerate(scores):
        header = texts[index] if len(texts) == len(scores) else ""
        piece_id = f"{name}/{Path(path).stem}#{index}"
        row = _piece(name, piece_id, Path(path).stem, header, score)
        if row is not None:
            rows.append(row)
    return rows


def _abc_tunes(path: str) -> list[str]:
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return [tune for tune in re.split(r"(?m)^(?=X:)", text) if tune.startswith("X:")]


def _header(text: str, field: str) -> str | None:
    found = re.search(rf"(?m)^{field}:[ \t]*(.*?)[ \t]*$", text)
    return found.group(1) if found and found.group(1) else None


def _piece(name: str, piece_id: str, stem: str, header: str, score: Any) -> dict[str, Any] | None:
    parts = [notes for part in _parts(score) if len(notes := _notes(part)) >= MIN_NOTES]
    if not parts or (name == "bach" and len(parts) != MAX_PARTS):
        return None
    parts = parts if name == "bach" else parts[:1]
    flat = [(index, *note) for index, notes in enumerate(parts) for note in notes]
    part, onset, duration, pitch = (list(column) for column in zip(*flat, strict=True))
    dance = (_header(header, "R") or "").lower()
    return {
        "id": piece_id,
        "source": name,
        "title": _header(header, "T") or stem,
        "licence": SOURCES[name].licence,
        "dance": DANCES.get(dance),
        "tune": "",
        "part": part,
        "onset": onset,
        "duration": duration,
        "pitch": pitch,
    }


def _parts(score: Any) -> list[Any]:
    parts = list(score.parts) if hasattr(score, "parts") else []
    return parts or [score]


def _notes(part: Any) -> list[tuple[int, int, int]]:
    """(onset, duration, pitch) of the sounding notes of a part; a chord gives its top note."""
    notes: dict[int, tuple[int, int]] = {}
    for event in part.stripTies().flatten().notes:
        if event.duration.isGrace or event.quarterLength <= 0 or "ChordSymbol" in event.classes:
            continue
        pitch = max(pitch.midi for pitch in event.pitches)
        onset = round(float(event.offset) * TICKS_PER_QUARTER)
        length = min(round(float(event.quarterLength) * TICKS_PER_QUARTER), 32767)
        notes[onset] = max(notes.get(onset, (0, 0)), (pitch, length))
    return [(onset, length, pitch) for onset, (pitch, length) in sorted(notes.items())]


def _name_tunes(rows: list[dict[str, Any]]) -> None:
    """Give pieces that are settings of one tune one name, so that a split never divides them.

    Two pieces are one tune when their normalised titles agree or the intervals between their
    first 12 top-part notes do (transposition-invariant); the relation is closed transitively.
    """
    leader = list(range(len(rows)))

    def find(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        for key in _tune_keys(row):
            if key in first:
                leader[find(index)] = find(first[key])
            else:
                first[key] = index
    for index, row in enumerate(rows):
        row["tune"] = hashlib.blake2b(
            str(rows[find(index)]["id"]).encode(), digest_size=6
        ).hexdigest()


def _tune_keys(row: dict[str, Any]) -> Iterator[str]:
    title = re.sub(r"\b(the|a|an)\b|[^a-z0-9]", "", str(row["title"]).lower())
    title = re.sub(r"(reel|jig|hornpipe|strathspey|clog|fling|bwv[0-9]+)$", "", title) or title
    if row["source"] != "bach" and len(title) >= 5:
        yield "title:" + title
    top = [p for part, p in zip(row["part"], row["pitch"], strict=True) if part == 0][:12]
    yield "notes:" + ",".join(str(b - a) for a, b in pairwise(top))
