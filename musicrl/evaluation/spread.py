"""The spread over runs: what several runs' summary.json files say together.

A standard error over prompts says how well one policy was measured; only runs of other seeds say
how much training itself varies. Here the mean and the standard deviation over runs are taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from musicrl.evaluation.figures import Figure, figure


@dataclass(frozen=True, kw_only=True)
class SpreadConfig:
    """Compare finished runs, such as those of several seeds."""

    summaries: tuple[Path, ...] = ()
    """summary.json files, or run folders that hold one."""
    json: Path | None = None
    """File that receives the figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One run's evaluation."""

    path: Path
    seed: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    change: Mapping[str, float]
    """Mean paired difference of each column."""
    kl: float | None
    """Nats a clip from the base, all streams; None when not measured."""


def run_spread(config: SpreadConfig, console: Console | None = None) -> dict[str, object]:
    """Read the runs, print their table, write the JSON file if asked; what it holds."""
    runs = [read_summary(path) for path in config.summaries]
    report = spread(runs)
    (console or Console()).print(spread_table(runs))
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def read_summary(path: Path) -> RunFigures:
    """The figures of a summary.json, or of the run folder that holds it.

    Raises FileNotFoundError when it is missing and ValueError naming it when it is no summary or
    its run was stopped before the evaluation.
    """
    file = path / "summary.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no summary at {file}")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ValueError(f"{file} is not JSON: {fault}") from fault
    if not isinstance(summary, dict) or "evaluation" not in summary:
        raise ValueError(f"{file} is not the summary of a run")
    if summary["evaluation"] is None:
        raise ValueError(f"{file}: the run was not evaluated before and after")
    return _figures(file, summary)


def spread(runs: Sequence[RunFigures]) -> dict[str, object]:
    """Mean and standard deviation over runs of every change and of the KL, and each run's own."""
    if not runs:
        raise ValueError("a comparison needs at least one summary.json")
    return {
        "runs": [{"path": str(r.path), "seed": r.seed, **r.change, "kl": r.kl} for r in runs],
        "before": {name: _json(values) for name, values in _columns(runs, "before").items()},
        "after": {name: _json(values) for name, values in _columns(runs, "after").items()},
        "change": {name: _json(values) for name, values in _columns(runs, "change").items()},
        "kl": _json(_kl(runs)),
    }


def spread_table(runs: Sequence[RunFigures]) -> Table:
    """One column a run, then the mean and the standard deviation over runs."""
    heads = [f"{run.path.parent.name}, seed {run.seed}" for run in runs]
    table = Table("figure", *heads, "mean ± SD over runs")
    for side in ("before", "after"):
        if (values := _columns(runs, side).get("reward")) is not None:
            cells = (f"{value:.3f}" for value in values)
            table.add_row(f"reward {side}", *cells, _mean_and_deviation(values))
    for name, values in _columns(runs, "change").items():
        cells = (f"{value:+.3f}" for value in values)
        table.add_row(f"{name}, change", *cells, _mean_and_deviation(values))
    kls = ["-" if run.kl is None else f"{run.kl:.1f}" for run in runs]
    table.add_row("KL, nats a clip", *kls, _mean_and_deviation(_kl(runs)))
    return table


def _figures(file: Path, summary: Mapping[str, Any]) -> RunFigures:
    evaluation = summary["evaluation"]
    try:
        total = evaluation["kl"].get("total")
        return RunFigures(
            path=file,
            seed=int(summary["seed"]),
            before=_means(evaluation["before"]),
            after=_means(evaluation["after"]),
            change=_means(evaluation["difference"]),
            kl=None if total is None else total["mean"],
        )
    except (KeyError, TypeError, AttributeError) as fault:
        raise ValueError(f"{file} is not the summary of a run: {fault!r}") from fault


def _means(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(f["mean"]) for name, f in figures.items() if f["mean"] is not None}


def _columns(runs: Sequence[RunFigures], side: str) -> dict[str, np.ndarray]:
    """Values over runs of each column that every run has."""
    tables = [{"before": r.before, "after": r.after, "change": r.change}[side] for r in runs]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: np.array([table[name] for table in tables]) for name in names}


def _kl(runs: Sequence[RunFigures]) -> np.ndarray:
    return np.array([run.kl for run in runs if run.kl is not None])


def deviation(values: np.ndarray) -> float:
    """Sample standard deviation over runs; NaN below two."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _json(values: np.ndarray) -> dict[str, float | int | None]:
    found: Figure = figure(values)
    spread_of = deviation(values)
    return {
        "mean": found.mean if found.count else None,
        "standard_deviation": None if np.isnan(spread_of) else spread_of,
        "runs": found.count,
    }


def _mean_and_deviation(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    mean = f"{values.mean():.3f}"
    return mean if len(values) == 1 else f"{mean} ± {deviation(values):.3f}"
