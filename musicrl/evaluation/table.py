"""Evaluations as tables for the terminal: one row a policy, means with standard errors."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import EvaluationResult


def result_table(results: Mapping[str, EvaluationResult]) -> Table:
    """Every column of every row, with the divergence from the base and the entropy."""
    columns = list(dict.fromkeys(name for result in results.values() for name in result.columns))
    table = Table("policy", *columns, "KL to base, nats a clip", "entropy, nats a token")
    for name, result in results.items():
        figures = result.figures
        cells = [str(figures[column]) if column in figures else "-" for column in columns]
        table.add_row(name, *cells, _divergence(result), _entropy(result))
    return table


def difference_table(changes: Mapping[str, Mapping[str, Figure]]) -> Table:
    """Paired differences from the base."""
    columns = list(dict.fromkeys(name for row in changes.values() for name in row))
    table = Table("minus base, paired", *columns)
    for name, row in changes.items():
        table.add_row(name, *(signed(row[column]) if column in row else "-" for column in columns))
    return table


def signed(change: Figure) -> str:
    """A difference with its sign, as `+0.120 ± 0.015`."""
    return f"+{change}" if change.count and change.mean >= 0 else str(change)


def _divergence(result: EvaluationResult) -> str:
    return f"{figure(result.kl['total']).mean:.1f}" if result.kl else "-"


def _entropy(result: EvaluationResult) -> str:
    means = [f"{figure(column).mean:.2f}" for column in result.entropy.values()]
    return " ".join(means) or "-"
