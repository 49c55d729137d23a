"""Evaluations as tables of cells: one column a row of the evaluation, means ± standard errors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from musicrl.evaluation.document import Table
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import REWARD, EvaluationResult


def result_table(results: Mapping[str, EvaluationResult]) -> Table:
    """Every figure of every row that has one, with the divergence from the base and the entropy."""
    figures = {name: _scored(result.figures) for name, result in results.items()}
    heads, rows = columns("figure", figures)
    kl = {name: _named("KL of {}, nats a clip", result.kl) for name, result in results.items()}
    entropy = {name: _named("entropy of {}, nats", row.entropy) for name, row in results.items()}
    return heads, [*rows, *columns("", kl)[1], *columns("", entropy)[1]]


def difference_table(changes: Mapping[str, Mapping[str, Figure]]) -> Table:
    """Paired differences from the base."""
    shown = {
        name: {key: signed(change) for key, change in _scored(row).items()}
        for name, row in changes.items()
    }
    return columns("minus base, paired", shown)


def frontier(results: Mapping[str, EvaluationResult]) -> list[tuple[str, float, Figure]]:
    """Name, divergence from the base in nats a clip, and reward of every row that has both, from
    the nearest to the farthest."""
    rows = [
        (name, figure(result.kl["total"]).mean, result.figures[REWARD])
        for name, result in results.items()
        if result.kl
    ]
    return sorted(rows, key=lambda row: row[1])


def frontier_table(results: Mapping[str, EvaluationResult]) -> Table:
    """Reward against divergence; that of a best of n is its upper bound."""
    heads = ("reward against divergence", "KL to base, nats a clip", "reward")
    return heads, [(name, f"{kl:.2f}", str(reward)) for name, kl, reward in frontier(results)]


def columns(title: str, rows: Mapping[str, Mapping[str, object]]) -> Table:
    """One column for each row, one line for each figure that any of them has."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [
        (name, *(str(row[name]) if name in row else "-" for row in rows.values())) for name in names
    ]
    return (title, *rows), cells


def signed(change: Figure) -> str:
    """A difference with its sign, as `+0.120 ± 0.015`."""
    return f"+{change}" if change.count and change.mean >= 0 else str(change)


def _scored(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: found for name, found in figures.items() if found.count}


def _named(label: str, streams: Mapping[str, NDArray[np.float64]]) -> dict[str, str]:
    """Means of columns [P], by a label of each stream."""
    return {label.format(name): f"{figure(column).mean:.2f}" for name, column in streams.items()}
