"""The prompt table: captions for reinforcement learning, and fixed held-out ones.

Training prompts word the attributes of train-split clips, every other one completely, the rest in
part; held-out prompts word those of test-split clips (tunes never trained on), completely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from musicrl.bounds import at_least
from musicrl.pretrain.attributes import Attributes
from musicrl.pretrain.world import WorldData


@dataclass(frozen=True, kw_only=True)
class PromptStageConfig:
    """Making of the prompt table."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder that receives prompts.parquet."""
    train_prompts: int = 2000
    heldout_prompts: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, train_prompts=self.train_prompts, heldout_prompts=self.heldout_prompts)


def write_prompts(config: PromptStageConfig) -> dict[str, float]:
    """Write prompts.parquet; returns the counts, and how many held-out prompts ask for a combination
    of attributes that no training clip has."""
    train, test = (WorldData(config.world, split) for split in ("train", "test"))
    rows = _rows(train, "train", config.train_prompts, config.seed)
    heldout = _rows(test, "heldout", config.heldout_prompts, config.seed)
    rows += heldout
    config.weights.mkdir(parents=True, exist_ok=True)
    path = config.weights / "prompts.parquet"
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
    partial.replace(path)
    counts = {"prompts/train": len(rows) - len(heldout), "prompts/heldout": len(heldout)}
    if train.is_described:
        counts["prompts/unseen_combinations"] = count_unseen(heldout, train.attributes)
    return {name: float(count) for name, count in counts.items()}


def count_unseen(rows: Sequence[Mapping[str, str | None]], trained: Sequence[Attributes]) -> int:
    """Rows whose attributes, as a whole, no clip of `trained` has."""
    seen = {known.combination for known in trained}
    names = Attributes.__dataclass_fields__
    asked = (frozenset((name, value) for name in names if (value := row[name])) for row in rows)
    return sum(each not in seen for each in asked)


def _rows(data: WorldData, split: str, count: int, seed: int) -> list[dict[str, str | None]]:
    """Distinct captions; held-out ones name every attribute."""
    rng, seen = Random(f"{seed}/{split}"), set[str]()
    rows: list[dict[str, str | None]] = []
    for index in rng.sample(range(len(data)), len(data)):
        is_complete = split == "heldout" or len(rows) % 2 == 0
        (text,) = data.captions([index], rng, complete=is_complete)
        if text in seen:
            continue
        seen.add(text)
        named = {"id": f"{split}-{len(rows):04d}", "text": text, "split": split}
        source = "embedded world" if data.is_described else "recordings"
        rows.append({**named, "source": source, **_known(data, index)})
        if len(rows) == count:
            break
    return rows


def _known(data: WorldData, index: int) -> dict[str, str | None]:
    """The attributes of a clip, where there are any."""
    return data.attributes[index].as_row() if data.is_described else {}
