"""Curves of training: how groups of runs got on, update by update, beside each other.

Runs of the same settings but the seed belong to one group. A curve is the mean over its runs, and
what differs between two groups is told with the deviation over seeds, since the reward of one update
is that of few clips. Figures are read from TensorBoard's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from musicrl.settings import read_yaml
from musicrl.textfile import write_text

PARTS = 4
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 300, 56, 40, 28, 16
COLOURS = ("#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#2c3e50")
SPAN = 5
"""Updates that a drawn curve is averaged over."""


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    """Put the training of finished runs beside each other."""

    runs: tuple[Path, ...] = ()
    """Run folders."""
    by: str = "cluster.max_lag"
    """Setting that tells the groups apart, by its name in config.yaml."""
    figure: str = "reward/mean"
    """What is drawn, by its name in TensorBoard."""
    out: Path | None = None
    """File that receives the plot, SVG."""
    json: Path | None = None
    """File that receives the figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run."""

    path: Path
    group: str
    """The value of the setting that tells groups apart."""
    values: NDArray[np.float64]
    """The figure of every update."""
    seconds: float
    """Median wall time of an update."""


def run_curves(config: CurvesConfig, console: Console | None = None) -> dict[str, Any]:
    """Read the runs, print their table, write what is asked for; what the JSON file holds."""
    if not config.runs:
        raise ValueError("curves are of at least one run's folder")
    curves = [read_curve(path, by=config.by, figure=config.figure) for path in config.runs]
    groups = group_curves(curves)
    report = to_report(config, groups)
    (console or Console()).print(to_table(report))
    if config.out is not None:
        write_text(config.out, draw(groups, by=config.by, figure=config.figure))
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def read_curve(path: Path, *, by: str, figure: str) -> Curve:
    """Raises FileNotFoundError or ValueError naming the run and what it does not have."""
    settings: Any = read_yaml(path / "config.yaml")
    for name in by.split("."):
        if not isinstance(settings, dict) or name not in settings:
            raise ValueError(f"{path / 'config.yaml'} has no setting {by}")
        settings = settings[name]
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    known = events.Tags()["scalars"]
    for name in (figure, "seconds/iteration"):
        if name not in known:
            raise ValueError(f"{path} has no figure {name!r} in {path / 'tensorboard'}")
    values = [event.value for event in events.Scalars(figure)]
    walls = [event.value for event in events.Scalars("seconds/iteration")]
    return Curve(
        path=path, group=str(settings), values=np.array(values), seconds=float(np.median(walls))
    )


def group_curves(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """By group, in the order of their first runs. Raises ValueError naming a run that is shorter or
    longer than the first."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        if len(curve.values) != len(curves[0].values):
            raise ValueError(
                f"{curve.path} has {len(curve.values)} updates, {curves[0].path} has "
                f"{len(curves[0].values)}"
            )
        groups.setdefault(curve.group, []).append(curve)
    return groups


def to_report(config: CurvesConfig, groups: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """Means of every quarter of the training, and how each group differs from the first."""
    rows, first = [], next(iter(groups.values()))
    for name, curves in groups.items():
        parts = quarters(curves)
        rows.append(
            {
                "group": name,
                "runs": [str(curve.path) for curve in curves],
                "seconds_per_update": float(np.median([curve.seconds for curve in curves])),
                "quarters": parts.mean(0).tolist(),
                "deviation": None if len(curves) < 2 else parts.std(0, ddof=1).tolist(),
                "difference": None if curves is first else differences(first, curves),
                "curve": np.mean([curve.values for curve in curves], axis=0).tolist(),
            }
        )
    return {"by": config.by, "figure": config.figure, "groups": rows}


def quarters(curves: Sequence[Curve]) -> NDArray[np.float64]:
    """Mean of each quarter of the updates, [runs, 4]."""
    cut = [np.array_split(curve.values, PARTS) for curve in curves]
    return np.array([[part.mean() for part in run] for run in cut])


def differences(first: Sequence[Curve], other: Sequence[Curve]) -> dict[str, Any]:
    """Of the means over all updates: other less first, with its standard error over the runs of both
    (None where either has one run)."""
    one, two = ([float(curve.values.mean()) for curve in curves] for curves in (first, other))
    error = None
    if min(len(one), len(two)) > 1:
        error = float(np.sqrt(np.var(one, ddof=1) / len(one) + np.var(two, ddof=1) / len(two)))
    return {"mean": float(np.mean(two) - np.mean(one)), "standard_error": error}


def to_table(report: Mapping[str, Any]) -> Table:
    table = Table(report["by"], title=f"{report['figure']} by quarters of the updates")
    for column in ("runs", "s/update", *(f"quarter {i + 1}" for i in range(PARTS)), "difference"):
        table.add_column(column, justify="right")
    for row in report["groups"]:
        deviations = row["deviation"] or [None] * PARTS
        cells = (_plus_minus(*both) for both in zip(row["quarters"], deviations, strict=True))
        other = row["difference"]
        told = "" if other is None else _plus_minus(other["mean"], other["standard_error"], "+")
        count, seconds = str(len(row["runs"])), f"{row['seconds_per_update']:.2f}"
        table.add_row(row["group"], count, seconds, *cells, told)
    return table


def _plus_minus(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def draw(groups: Mapping[str, Sequence[Curve]], *, by: str, figure: str) -> str:
    """An SVG: thin lines are runs, thick ones the means of groups, over a few updates each."""
    smooth = {name: [_smooth(curve.values) for curve in curves] for name, curves in groups.items()}
    everything = np.concatenate([line for lines in smooth.values() for line in lines])
    low, high = float(everything.min()), float(everything.max())
    room = (high - low) / 12 or 1.0
    low, high = low - room, high + room

    def path(line: NDArray[np.float64], colour: str, width: float, opacity: float) -> str:
        xs = LEFT + np.arange(len(line)) / max(1, len(line) - 1) * (WIDTH - LEFT - RIGHT)
        ys = HEIGHT - BOTTOM - (line - low) / (high - low) * (HEIGHT - BOTTOM - TOP)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}" opacity="{opacity}"/>'
        )

    drawn = []
    for number, (name, lines) in enumerate(smooth.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawn += [path(line, colour, 1, 0.35) for line in lines]
        drawn.append(path(np.mean(lines, axis=0), colour, 2.5, 1))
        label = f"{by} {name}, {len(lines)} run{'s' * (len(lines) != 1)}"
        drawn.append(_text(LEFT + 8, TOP + 14 + 16 * number, label, "start", colour))
    updates = len(next(iter(groups.values()))[0].values)
    axes = [
        _line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM),
        _line(LEFT, TOP, LEFT, HEIGHT - BOTTOM),
        _text(LEFT - 6, HEIGHT - BOTTOM, f"{low:.2f}", "end"),
        _text(LEFT - 6, TOP + 8, f"{high:.2f}", "end"),
        _text(LEFT, TOP - 10, f"{figure}, mean over {SPAN} updates", "start"),
        _text(WIDTH - RIGHT, HEIGHT - 14, f"update {updates}", "end"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(figure)}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join([*axes, *drawn])}</svg>\n'
    )


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over up to `SPAN` updates around each."""
    span = min(SPAN, len(values))
    sums = np.convolve(values, np.ones(span), mode="same")
    return sums / np.convolve(np.ones(len(values)), np.ones(span), mode="same")


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#000"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#000") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
