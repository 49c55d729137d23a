"""What may not stand in a file of preferences: the rules of FORMAT.md, checked a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from musicrl.preference.schema import SIMULATED

CHOICES = ("a", "b", "none")


def batch_fault(batch: pa.RecordBatch) -> str | None:
    """The first row that breaks a rule, as `row 7: choice 'c'`, counted from 0; None where all are
    sound."""
    for name, is_bad in _rules(batch):
        if is_bad.any():
            row = int(is_bad.argmax())
            return f"row {row}: {name}{_shown(batch, name, row)}"
    return None


def _rules(batch: pa.RecordBatch) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """A column's name and, bool [rows], where it breaks its rule."""
    for name in batch.schema.names:
        yield name, _bools(pc.is_null(batch.column(name)))
    names = set(batch.schema.names)
    for name in sorted(names & {"prompt", "prompt_id", "id", "rater", "clip", "clip_a", "clip_b"}):
        yield name, _bools(pc.equal(batch.column(name), ""))
    for name in sorted(names & {"heard", "heard_a", "heard_b"}):
        heard = batch.column(name).to_numpy()
        yield name, ~((heard >= 0) & (heard <= 1))
    for suffix in ("", "_a", "_b"):
        if f"tokens{suffix}" in names:
            yield f"tokens{suffix}", _misshapen(batch, suffix)
    if "choice" in names:
        yield "choice", ~_bools(pc.is_in(batch.column("choice"), pa.array(CHOICES)))
    if "score" in names:
        score = batch.column("score").to_numpy()
        yield "score", (score < 1) | (score > 5)
    if "rater" in names:
        is_named = _bools(pc.starts_with(batch.column("rater"), SIMULATED))
        yield "rater", is_named != _bools(batch.column("simulated"))


def _misshapen(batch: pa.RecordBatch, suffix: str) -> NDArray[np.bool_]:
    """Where the tokens are no grid of at least one step and stream."""
    sizes = pc.list_value_length(batch.column(f"tokens{suffix}")).to_numpy()
    steps, streams = (
        batch.column(name + suffix).to_numpy().astype(np.int64) for name in ("steps", "streams")
    )
    bad: NDArray[np.bool_] = (steps < 1) | (streams < 1) | (steps * streams != sizes)
    return bad


def _shown(batch: pa.RecordBatch, name: str, row: int) -> str:
    if name.startswith("tokens"):
        suffix = name.removeprefix("tokens")
        shape = [batch.column(side + suffix)[row].as_py() for side in ("steps", "streams")]
        return f" are not {shape[0]} steps of {shape[1]} streams"
    return f" {batch.column(name)[row].as_py()!r}"


def _bools(array: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = array.to_numpy(zero_copy_only=False).astype(bool)
    return found
