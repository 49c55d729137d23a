"""`prefs validate`: whether files of preferences may be trained on, and what they hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from musicrl.preference.dataset import CheckedFiles, check_files, read_batches
from musicrl.preference.schema import COMPARISONS

COUNTED = ("id", "prompt", "rater", "choice", "simulated", "policy_a", "policy_b")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Check files of comparisons from end to end and count what they hold."""

    files: tuple[Path, ...] = ()
    skip_bad: bool = False
    """Report bad files and go on with the others."""
    json: Path | None = None
    """File that receives the figures."""


@dataclass(kw_only=True)
class Census:
    """What comparisons hold."""

    rows: int = 0
    ids: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    raters: set[str] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)
    choices: Counter[str] = field(default_factory=Counter)
    simulated: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        ids, prompts, raters, choices, simulated, *policies = (
            batch.column(name).to_pylist() for name in COUNTED
        )
        self.rows += batch.num_rows
        self.ids.update(ids)
        self.prompts.update(prompts)
        self.raters.update(raters)
        self.policies.update(*policies)
        self.choices.update(choices)
        self.simulated += sum(simulated)

    @property
    def figures(self) -> dict[str, int | float]:
        decided = self.choices["a"] + self.choices["b"]
        return {
            "comparisons": self.rows,
            "of simulated raters": self.simulated,
            "prompts": len(self.prompts),
            "raters": len(self.raters),
            "policies": len(self.policies),
            "without a trophy": self.choices["none"],
            "the first clip won, share": self.choices["a"] / decided if decided else 0.0,
            "identifiers that occur again": self.rows - len(self.ids),
        }


def validate(config: ValidateConfig, console: Console | None = None) -> dict[str, object]:
    """Print what the files hold, write the JSON file if asked; what it holds.

    Raises as `check_files`.
    """
    console = console or Console()
    checked = check_files(config.files, COMPARISONS, skip_bad=config.skip_bad)
    census = count(checked.whole)
    report: dict[str, object] = {
        "files": [str(path) for path in checked.whole],
        "skipped": {str(path): fault for path, fault in checked.faults.items()},
        **census.figures,
    }
    console.print(_table(checked, census))
    for fault in checked.faults.values():
        console.print(f"skipped: {fault}", markup=False)
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def count(paths: Sequence[Path]) -> Census:
    """The census of files that were checked."""
    census = Census()
    for batch in _batches(paths):
        census.add(batch)
    return census


def _batches(paths: Sequence[Path]) -> Iterable[pa.RecordBatch]:
    for path in paths:
        yield from read_batches(path)


def _table(checked: CheckedFiles, census: Census) -> Table:
    table = Table("figure", "value")
    table.add_row("files", str(len(checked.whole)))
    table.add_row("files skipped", str(len(checked.faults)))
    for name, value in census.figures.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    return table
