"""Evaluations as tables for the terminal: one column a policy, means ± standard errors."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import REWARD, EvaluationResult


def result_table(results: Mapping[str, EvaluationResult]) -> Table:
    """Every figure of every policy, with the divergence from the base and the entropy."""
    names = list(dict.fromkeys(name for result in results.values() for name in result.columns))
    table = Table("figure", *results)
    figures = [result.figures for result in results.values()]
    for name in names:
        table.add_row(name, *(str(row[name]) if name in row else "-" for row in figures))
    table.add_row("KL to base, nats a clip", *map(_divergence, results.values()))
    streams = dict.fromkeys(name for result in results.values() for name in result.entropy)
    for stream in streams:
        cells = (_entropy(result, stream) for result in results.values())
        table.add_row(f"entropy of {stream}, nats", *cells)
    return table


def difference_table(changes: Mapping[str, Mapping[str, Figure]]) -> Table:
    """Paired differences from the base."""
    names = list(dict.fromkeys(name for row in changes.values() for name in row))
    table = Table("minus base, paired", *changes)
    for name in names:
        cells = (signed(row[name]) if name in row else "-" for row in changes.values())
        table.add_row(name, *cells)
    return table


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
    table = Table("reward against divergence", "KL to base, nats a clip", "reward")
    for name, divergence, reward in frontier(results):
        table.add_row(name, f"{divergence:.2f}", str(reward))
    return table


def codec_table(rows: Mapping[str, Mapping[str, Figure]]) -> Table:
    """What a codec keeps of real clips, one column for a number of levels."""
    return _table("real clips through the codec", rows)


def set_table(rows: Mapping[str, Mapping[str, object]]) -> Table:
    """Numbers of whole sets of clips."""
    return _table("set of clips", rows)


def signed(change: Figure) -> str:
    """A difference with its sign, as `+0.120 ± 0.015`."""
    return f"+{change}" if change.count and change.mean >= 0 else str(change)


def _table(title: str, rows: Mapping[str, Mapping[str, object]]) -> Table:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table(title, *rows)
    for name in names:
        table.add_row(name, *(str(row[name]) if name in row else "-" for row in rows.values()))
    return table


def _divergence(result: EvaluationResult) -> str:
    return f"{figure(result.kl['total']).mean:.1f}" if result.kl else "-"


def _entropy(result: EvaluationResult, stream: str) -> str:
    return f"{figure(result.entropy[stream]).mean:.2f}" if stream in result.entropy else "-"
