"""Decided comparisons as arrays to learn from: Parquet streamed into one file of tokens.

Tokens lie in a file that is mapped, not read: memory holds some bytes a pair, whatever the length
of a clip. Decides what is learned from and what is held out. Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from musicrl.layout import Layout
from musicrl.preference.combine import SplitConfig, chooser
from musicrl.preference.dataset import check_files, read_batches
from musicrl.preference.rows import to_comparisons
from musicrl.types import Comparison

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which comparisons are used, and which of them are held out."""

    by: Literal["prompt", "rater", "comparison"] = "prompt"
    """What stays whole: all comparisons of one text, or of one listener, go to the same side."""
    heldout: float = 0.05
    """Share of the groups that is held out (the paper's 15,000 of 300,000, section 3.3)."""
    seed: int = 0
    """Of the split."""
    listener: str | None = None
    """Rater whose comparisons alone are used: a personal model (none: everybody's)."""
    after: str | None = None
    """Time in ISO 8601, UTC unless it says otherwise; only later choices are used (none: all). A
    model's file says the newest that it learned from."""
    minimum_heard: float = 0.0
    """Share of each clip that must have been played, and always more than nothing: the paper drops
    who did not listen to both (section 3.3)."""

    def __post_init__(self) -> None:
        if not 0 < self.heldout < 1:
            raise ValueError(f"heldout must be between 0 and 1, got {self.heldout}")
        if not 0 <= self.minimum_heard <= 1:
            raise ValueError(f"minimum_heard must be 0 to 1, got {self.minimum_heard}")
        if self.after is not None:
            to_time(self.after)

    @property
    def newer_than(self) -> datetime:
        return to_time(self.after) if self.after else datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """M decided comparisons of clips of S steps."""

    tokens: NDArray[np.int16]
    """int16 [M, 2, S, K], mapped from a file: the first and the second clip, as presented."""
    first_wins: Bools
    """bool [M]."""
    prompt: Ints
    """int32 [M]: number of the text among `texts`."""
    texts: tuple[str, ...]
    is_heldout: Bools
    """bool [M]."""
    simulated: int
    """Comparisons by simulated raters."""
    dropped: Counter[str]
    """Comparisons that were not used, by reason."""
    newest: datetime | None
    """Of the choices; none without any."""

    @property
    def num_steps(self) -> int:
        return int(self.tokens.shape[2])

    @property
    def train(self) -> NDArray[np.int64]:
        """Numbers of the comparisons to learn from; so are those of `heldout`."""
        return np.flatnonzero(~self.is_heldout)

    @property
    def heldout(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.is_heldout)


def load_pairs(
    files: Sequence[Path], spool: Path, layout: Layout, config: SelectionConfig
) -> Pairs:
    """Read the comparisons that `config` selects; their tokens go to the file `spool`.

    A comparison without a trophy teaches nothing and is dropped, as the paper's are. Raises
    ValueError naming file and comparison for grids that differ in shape or are not of `layout`,
    and as `check_files`.
    """
    whole = check_files(files).whole
    num_rows = sum(pq.read_metadata(path).num_rows for path in whole)
    reader = _Reader(spool, layout, config, num_rows)
    for path in whole:
        for batch in read_batches(path):
            reader.add(path, batch)
    return reader.finish()


class _Reader:
    """Pairs under construction: M_max rows are reserved, M are filled."""

    def __init__(self, spool: Path, layout: Layout, config: SelectionConfig, rows: int) -> None:
        self._spool, self._layout, self._config = spool, layout, config
        self._newer_than = config.newer_than
        self._choose = chooser(SplitConfig(by=config.by, heldout=config.heldout, seed=config.seed))
        self._shape: tuple[int, ...] | None = None
        self._prompt = np.empty(rows, np.int32)
        self._first_wins, self._is_heldout = np.empty(rows, bool), np.empty(rows, bool)
        self._texts: dict[str, int] = {}
        self._dropped: Counter[str] = Counter()
        self._filled = self._simulated = 0
        self._newest: datetime | None = None
        spool.parent.mkdir(parents=True, exist_ok=True)
        self._file = spool.open("wb")

    def add(self, path: Path, batch: pa.RecordBatch) -> None:
        held = self._choose(batch)
        grids = []
        for comparison, is_held in zip(to_comparisons(batch), held.tolist(), strict=True):
            reason = self._refused(comparison)
            if reason is not None:
                self._dropped[reason] += 1
                continue
            grids.append(self._grid(path, comparison))
            self._keep(comparison, is_held)
        if grids:
            block = np.stack(grids)
            self._check_vocabulary(path, block)
            self._file.write(block.tobytes())

    def _refused(self, comparison: Comparison) -> str | None:
        """Why a comparison is not used."""
        heard = min(comparison.heard_a, comparison.heard_b)
        if self._config.listener not in (None, comparison.rater):
            return "of another listener"
        if comparison.time <= self._newer_than:
            return "too old"
        if comparison.choice == "none":
            return "without a trophy"
        if heard <= 0 or heard < self._config.minimum_heard:
            return "not heard"
        return None

    def _grid(self, path: Path, comparison: Comparison) -> NDArray[np.int16]:
        pair = comparison.clip_a.tokens, comparison.clip_b.tokens
        self._shape = self._shape or (pair[0].shape[0], self._layout.num_streams)
        for tokens in pair:
            if tokens.shape != self._shape:
                raise ValueError(
                    f"{path}, comparison {comparison.id}: a grid of {_by(tokens.shape)} steps and "
                    f"streams, expected {_by(self._shape)}, as the first clip and the policy have"
                )
        return np.stack(pair)

    def _check_vocabulary(self, path: Path, block: NDArray[np.int16]) -> None:
        for k, size in enumerate(self._layout.vocab_sizes):
            lowest, highest = int(block[..., k].min()), int(block[..., k].max())
            if lowest < 0 or highest >= size:
                token = lowest if lowest < 0 else highest
                name = self._layout.stream_names[k]
                raise ValueError(f"{path} holds token {token} in stream {name} of {size} tokens")

    def _keep(self, comparison: Comparison, is_held: bool) -> None:
        text, at = comparison.prompt.text, self._filled
        self._prompt[at] = self._texts.setdefault(text, len(self._texts))
        self._first_wins[at] = comparison.choice == "a"
        self._is_heldout[at] = is_held
        self._simulated += comparison.simulated
        self._newest = max(self._newest or comparison.time, comparison.time)
        self._filled += 1

    def finish(self) -> Pairs:
        self._file.close()
        M, shape = self._filled, self._shape or (1, self._layout.num_streams)
        mapped = (M, 2, *shape)
        tokens: NDArray[np.int16] = (
            np.memmap(self._spool, np.int16, "r", shape=mapped) if M else np.empty(mapped, np.int16)
        )
        return Pairs(
            tokens=tokens,
            first_wins=self._first_wins[:M],
            prompt=self._prompt[:M],
            texts=tuple(self._texts),
            is_heldout=self._is_heldout[:M],
            simulated=self._simulated,
            dropped=self._dropped,
            newest=self._newest,
        )


def batches(pairs: NDArray[np.int64], size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Endless batches of `size` of the numbers `pairs`, in a new order every epoch; what is left of
    an epoch is dropped. Decided by the seed alone."""
    epoch = 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(pairs)
        for first in range(0, len(order) - size + 1, size):
            yield order[first : first + size]
        epoch += 1


def prompt_batches(
    pairs: NDArray[np.int64], prompt: Ints, count: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Endless batches of all numbers of `count` prompts, as `batches`: a clip that stands in many
    pairs is scored once for all of them. `prompt` int32 [M] is the prompt of every number."""
    members: dict[int, list[int]] = {}
    for number in pairs.tolist():
        members.setdefault(int(prompt[number]), []).append(number)
    groups = [np.array(numbers, np.int64) for numbers in members.values()]
    for drawn in batches(np.arange(len(groups)), min(count, len(groups)), seed):
        yield np.concatenate([groups[group] for group in drawn.tolist()])


def to_time(after: str) -> datetime:
    """Raises ValueError when it is none."""
    try:
        time = datetime.fromisoformat(after)
    except ValueError as fault:
        raise ValueError(f"after must be a time in ISO 8601, got {after!r}") from fault
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
