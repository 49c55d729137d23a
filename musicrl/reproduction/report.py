"""The report of a reproduction in Markdown and JSON: what was found, and plainly what was not.

Knows the findings as plain data; the page with players and plots stands in `page.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from musicrl.evaluation.document import Table, markdown_table
from musicrl.evaluation.figures import Figure
from musicrl.evaluation.kept import kept_table, passed_over
from musicrl.evaluation.table import signed
from musicrl.reproduction.findings import Ordering, PairFinding
from musicrl.reproduction.kept import KeptFinding, verdicts

SIMULATED = (
    "No person rated anything here. Raters are SIMULATED, and the preference model learned from "
    "simulated raters, unless its file says otherwise."
)
KEPT = "What became of music: one in forty unchanged figures is called worse by chance"
REWARDS = ("text", "quality", "preference")
JUDGES = ("embedding", "tagger", "quality", "pitch-variety", "sounding")
DIVERSITY = ("spread/judge", "spread/tagger", "silent", "clipped", "longest-note")
DISTANCES = ("frechet/judge", "kernel/judge", "frechet/tagger", "kernel/tagger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a report says."""

    settings: Mapping[str, Any]
    """What was run."""
    preference: Mapping[str, Any]
    """What the preference model's file says of itself."""
    pairs: Sequence[PairFinding]
    orderings: Sequence[Ordering]
    models: Sequence[Mapping[str, Any]]
    """Rows of `findings.model_rows`."""
    text: Mapping[str, Figure]
    """Paired change of text adherence from the base of `MODEL, seed N`."""

    kept: Sequence[KeptFinding]
    """What every model kept of the base's music."""

    @property
    def failures(self) -> list[Ordering]:
        return [found for found in self.orderings if found.verdict != "holds"]

    def to_json(self) -> dict[str, Any]:
        return {
            "simulated": True,
            "note": SIMULATED,
            "settings": dict(self.settings),
            "preference_model": dict(self.preference),
            "pairs": [pair.to_json() for pair in self.pairs],
            "orderings": [found.to_json() for found in self.orderings],
            "text_adherence_change": {k: v.to_json() for k, v in self.text.items()},
            "kept": [found.to_json() for found in self.kept],
            "models": [dict(row) for row in self.models],
        }


def to_markdown(report: Report) -> str:
    """The report.md."""
    parts = [
        "# MusicRL in the tiny world: base, R, U, RU",
        SIMULATED,
        _trained_on(report.preference),
        verdict(report),
        *(f"- {found}" for found in report.orderings),
        music_verdict(report),
        "## Pairs",
        (
            "Win rate = wins / (wins + losses), with a 95 % bootstrap interval over prompts; p: Wilcoxon "
            "signed-rank over prompts. The control is the base against itself."
        ),
        markdown_table(pair_table(report.pairs)),
        "## Models",
        *(f"### {title}\n\n{markdown_table(table)}" for title, table in model_tables(report)),
        f"## {KEPT}",
        *(f"- {sentence}" for sentence in music_said(report)),
        markdown_table(kept_rows(report)),
        "## Text adherence against the base, paired",
        *(f"- {name}: {signed(change)}" for name, change in report.text.items()),
        "## Settings",
        "```\n" + "\n".join(f"{k}: {v}" for k, v in report.settings.items()) + "\n```",
    ]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def music_verdict(report: Report) -> str:
    """One sentence: whose reward was bought with music."""
    trained = [row for row in verdicts(report.kept) if row.found.reward is not None]
    failed = ", ".join(row.name for row in trained if row.found.is_bought)
    if not failed:
        return "No model's reward rose while a figure of its music fell by more than its interval."
    return (
        f"FAILED: rewards rose while figures of music fell by more than their intervals: {failed}."
    )


def music_said(report: Report) -> list[str]:
    """A sentence on what every model kept of music, of all seeds together."""
    said = [row.found.said(row.name) for row in verdicts(report.kept)]
    missing = passed_over({row.name: row.found for row in report.kept})
    return [*said, *([f"not measured here: {'; '.join(missing)}"] if missing else [])]


def kept_rows(report: Report) -> Table:
    """Every figure's change, of every model."""
    return kept_table({row.name: row.found for row in verdicts(report.kept)})


def verdict(report: Report) -> str:
    """One sentence: which of the paper's orderings were found."""
    total, failed = len(report.orderings), report.failures
    if not total:
        return "The models that were trained have no ordering in the paper."
    rater = report.orderings[0].finding.rater
    if not failed:
        return f"All {total} of the paper's orderings hold in the eyes of: {rater}."
    names = ", ".join(f"{found.better} over {found.worse} ({found.verdict})" for found in failed)
    return (
        f"{total - len(failed)} of {total} of the paper's orderings hold in the eyes of: {rater}. "
        f"NOT found: {names}."
    )


def pair_table(pairs: Sequence[PairFinding]) -> Table:
    heads = (
        "rater",
        "seed",
        "a",
        "b",
        "wins",
        "ties",
        "losses",
        "win rate of a (95 %)",
        "p",
        "paper, %",
    )
    rows = []
    for row in pairs:
        found, paper = row.found, row.to_json()["paper"]
        counts = (str(found.wins), str(found.ties), str(found.losses))
        p = "-" if found.to_json()["p_value"] is None else f"{found.p_value:.2g}"
        named = "-" if paper is None else f"{100 * paper:.0f}"
        rows.append((row.rater, str(row.seed), row.a, row.b, *counts, str(found), p, named))
    return heads, rows


def model_tables(report: Report) -> Iterator[tuple[str, Table]]:
    """Rewards and judges, opinions and what they are made of, and the clips of every model."""
    rows = report.models
    rewards = {f"reward: {name}": ("rewards", name) for name in REWARDS}
    judges = {f"judge: {name}": ("judges", name) for name in JUDGES}
    yield "Means over prompts ± standard errors", _columns(rows, {**rewards, **judges})
    raters = dict.fromkeys(rater for row in rows for rater in row["mos"])
    yield "Mean opinion, 1 to 5", _columns(rows, {name: ("mos", name) for name in raters})
    yield "Divergence, nats a clip", _divergences(rows)
    terms = dict.fromkeys(term for row in rows for term in row["utility"])
    if terms:
        title = "What the raters like, more than of the base, in deviations among clips of a prompt"
        yield title, _columns(rows, {term: ("utility", term) for term in terms})
    diversity = {name: ("diversity", name) for name in DIVERSITY}
    yield "Diversity", _columns(rows, diversity)
    distances = {name: ("distances", name) for name in DISTANCES}
    yield "Distance to the clips of the base", _columns(rows, distances)


def _divergences(rows: Sequence[Mapping[str, Any]]) -> Table:
    heads = ("model", "seed", "updates", "from its KL reference", "(which)", "from the base")
    cells = [
        (
            str(row["name"]),
            str(row["seed"]),
            str(row["updates"]),
            _cell(row["kl"]["reference"]),
            str(row["kl_reference"]),
            _cell(row["kl"]["base"]["total"]),
        )
        for row in rows
    ]
    return heads, cells


def _columns(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> Table:
    cells = [
        (
            str(row["name"]),
            str(row["seed"]),
            *(_cell(row[group].get(key)) for group, key in columns.values()),
        )
        for row in rows
    ]
    return ("model", "seed", *columns), cells


def _cell(found: Mapping[str, Any] | None) -> str:
    """A mean or a distance with its standard error; a dash where there is none."""
    if found is None:
        return "-"
    value, error = found.get("mean", found.get("value")), found["standard_error"]
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _trained_on(facts: Mapping[str, Any]) -> str:
    accuracy, raters = facts.get("accuracy"), facts.get("raters", "unknown")
    if accuracy is None:
        return f"The preference model's raters: {raters}."
    return f"The preference model's raters: {raters}; held-out accuracy {accuracy:.3f}."
