"""The archive of a run: what every training step was trained on, a Parquet file each.

    <out>/rollouts/step_000012.parquet    a row per sample, in the learner's order

A file holds all that an update reads, bit for bit, so that training on it again (`replay_from`)
repeats the run, and training with other settings shows what they alone change. Files appear whole;
a step that is done again after a fault replaces its own. Columns (S steps and K streams of the grid
stand in the file's metadata):

    step           int64           training step
    chunk          int32           place of the sampling task within the step
    prompt_id, prompt_text, prompt_source   string
    attributes     list<struct<name, value>>   what the caption is known to ask for
    conditions     list<int16>     conditioning tokens
    tokens         list<int16>     S x K, step by step
    logprobs       list<float>     S x K, nats, of each token under what it was drawn from
    kept           binary          S x K x ceil(V / 8) bytes where top-k cut; null elsewhere
    group          int32           samples of one prompt share a number within a chunk
    seed           uint64          the sample's own random stream
    version        int64           of the weights that sampled it
    reward, valid  float, bool     the mix; whether it carries a gradient
    terms          list<struct<name, value>>   raw rewards; NaN where one failed
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from musicrl.types import Experience, Prompt, RewardBatch, Rollouts

FOLDER = "rollouts"
FORMAT = b"musicrl-rollouts/1"
NAMED = re.compile(r"step_(\d+)\.parquet")
NAMES = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
TERMS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float32())]))
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("chunk", pa.int32()),
        ("prompt_id", pa.string()),
        ("prompt_text", pa.string()),
        ("prompt_source", pa.string()),
        ("attributes", NAMES),
        ("conditions", pa.list_(pa.int16())),
        ("tokens", pa.list_(pa.int16())),
        ("logprobs", pa.list_(pa.float32())),
        ("kept", pa.binary()),
        ("group", pa.int32()),
        ("seed", pa.uint64()),
        ("version", pa.int64()),
        ("reward", pa.float32()),
        ("valid", pa.bool_()),
        ("terms", TERMS),
    ]
)


class Archive:
    """A folder of such files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, experience: Sequence[Experience]) -> Path:
        """Keep what training step number `step` was trained on, in that order."""
        rows = [row for i, e in enumerate(experience) for row in _rows(step, i, e)]
        grid = experience[0].rollouts.tokens.shape[1:]
        metadata = {"format": FORMAT, "steps": str(grid[0]), "streams": str(grid[1])}
        table = pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(step)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
        partial.replace(path)
        return path

    def read(self, step: int) -> tuple[Experience, ...]:
        """The experience of a training step.

        Raises FileNotFoundError for one that is not here, ValueError naming a file that is damaged or
        not of this format.
        """
        path = self._path(step)
        if not path.is_file():
            raise FileNotFoundError(f"no rollouts of training step {step}: {path} is missing")
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as fault:
            raise ValueError(f"{path} is not a readable Parquet file: {fault}") from fault
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != FORMAT or not table.schema.equals(SCHEMA):
            raise ValueError(f"{path} does not hold rollouts in the format {FORMAT.decode()}")
        grid = int(metadata[b"steps"]), int(metadata[b"streams"])
        chunks = groupby(table.to_pylist(), key=lambda row: row["chunk"])
        return tuple(_experience(list(rows), grid) for _, rows in chunks)

    def steps(self) -> list[int]:
        """Training steps that are here, in order."""
        found = (NAMED.fullmatch(path.name) for path in self.folder.glob("step_*.parquet"))
        return sorted(int(match[1]) for match in found if match)

    def check(self, first: int, last: int) -> None:
        """Raise FileNotFoundError when a training step from `first` to before `last` is missing."""
        missing = sorted(set(range(first, last)) - set(self.steps()))
        if missing:
            raise FileNotFoundError(
                f"{self.folder} has no rollouts of training step {missing[0]}: steps {first} to "
                f"{last - 1} are to be replayed"
            )

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}.parquet"


def _rows(step: int, chunk: int, experience: Experience) -> Iterator[dict[str, Any]]:
    rollouts, rewards = experience.rollouts, experience.rewards
    for i, prompt in enumerate(rollouts.prompts):
        yield {
            "step": step,
            "chunk": chunk,
            "prompt_id": prompt.id,
            "prompt_text": prompt.text,
            "prompt_source": prompt.source,
            "attributes": [{"name": name, "value": value} for name, value in prompt.attributes],
            "conditions": rollouts.conditions[i],
            "tokens": rollouts.tokens[i].ravel(),
            "logprobs": rollouts.logprobs[i].ravel(),
            "kept": None if rollouts.kept is None else rollouts.kept[i].tobytes(),
            "group": rollouts.group[i],
            "seed": rollouts.seeds[i],
            "version": rollouts.version[i],
            "reward": rewards.total[i],
            "valid": rewards.valid[i],
            "terms": [{"name": name, "value": term[i]} for name, term in rewards.terms.items()],
        }


def _experience(rows: Sequence[dict[str, Any]], grid: tuple[int, int]) -> Experience:
    def column(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return np.array([row[name] for row in rows], dtype).reshape(len(rows), *shape)

    rollouts = Rollouts(
        prompts=tuple(_prompt(row) for row in rows),
        conditions=column("conditions", np.int16, -1),
        tokens=column("tokens", np.int16, *grid),
        logprobs=column("logprobs", np.float32, *grid),
        group=column("group", np.int32),
        seeds=column("seed", np.uint64),
        version=column("version", np.int64),
        kept=_kept(rows, grid),
    )
    names = [term["name"] for term in rows[0]["terms"]]
    terms = np.array([[t["value"] for t in row["terms"]] for row in rows], np.float32)
    rewards = RewardBatch(
        total=column("reward", np.float32),
        terms={name: terms[:, i] for i, name in enumerate(names)},
        valid=column("valid", np.bool_),
    )
    return Experience(rollouts=rollouts, rewards=rewards)


def _kept(rows: Sequence[dict[str, Any]], grid: tuple[int, int]) -> NDArray[np.uint8] | None:
    if rows[0]["kept"] is None:
        return None
    flat = np.stack([np.frombuffer(row["kept"], np.uint8) for row in rows])
    return flat.reshape(len(rows), *grid, -1)


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(
        id=row["prompt_id"],
        text=row["prompt_text"],
        source=row["prompt_source"],
        attributes=tuple((a["name"], a["value"]) for a in row["attributes"]),
    )
