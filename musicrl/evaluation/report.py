"""The report of an evaluation: its tables, what could not be measured, and the settings.

The same sections for the terminal, in Markdown and in HTML. It measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from musicrl.evaluation.bars import named
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.document import Table, html_table, markdown_table, page
from musicrl.evaluation.heldout import differences, win_rates
from musicrl.evaluation.kept import kept_table, passed_over
from musicrl.evaluation.origin import BASE
from musicrl.evaluation.rows import Evaluation
from musicrl.evaluation.table import (
    columns,
    difference_table,
    frontier,
    frontier_table,
    result_table,
)
from musicrl.rewards.preference import PREFERENCE, raters_of

TITLE = "Evaluation on held-out prompts"
NO_PERSON = "Rewards and judges are programs: no person heard these clips."
WIN_RATES = "Win rates over base: of the prompts whose two clips differ in a score"
ASKED = "What music is asked to be: real clips by their own captions, policies by held-out prompts"
KEPT = "What the base's music became: one in forty unchanged figures is called worse by chance"
UNSEEN = "Prompts whose attributes, as a whole, no clip has that models learned from"
ASK_FOR = "--pitch True tracks solos, --world DIR has real clips"
NO_REFERENCE = "no distances: they are to the real clips of --world, or to the clips of --base"


def sections(evaluation: Evaluation) -> list[tuple[str, Table]]:
    """Title and table of every part that has something to say."""
    results = evaluation.results
    base, others = results[BASE], {k: v for k, v in results.items() if k != BASE}
    found = [("Figures: means over prompts ± standard errors", result_table(results))]
    if others:
        changes = {name: differences(base, result) for name, result in others.items()}
        wins = {name: win_rates(base, result) for name, result in others.items()}
        found += [
            ("Paired differences", difference_table(changes)),
            (WIN_RATES, columns("scored higher than base (95 %)", wins)),
        ]
    if evaluation.kept:
        found.append((KEPT, kept_table(evaluation.kept)))
    if len(frontier(results)) > 1:
        found.append(("Reward against divergence", frontier_table(results)))
    sets = {name: {**row.distances, **row.diversity} for name, row in evaluation.sets.items()}
    found.append(("Sets of clips: distances and diversity", columns("set of clips", sets)))
    if any(evaluation.bars.values()):
        found.append((ASKED, columns("asked", named(evaluation.bars))))
    if evaluation.unseen:
        found.append((UNSEEN, columns("unseen combinations", evaluation.unseen)))
    if evaluation.codec:
        codec = columns("real clips through the codec", evaluation.codec)
        found.append(("The codec", codec))
    return found


def told(evaluation: Evaluation) -> list[str]:
    """What each row kept of music, what distances are to, and what was left out, a sentence each."""
    to = evaluation.reference
    left_out = [f"left out: {name}: {why}" for name, why in evaluation.left_out.items()]
    kept = [row.said(name) for name, row in evaluation.kept.items()]
    if kept and (missing := passed_over(evaluation.kept)):
        kept.append(f"not measured ({ASK_FOR}): {'; '.join(missing)}")
    return [*kept, NO_REFERENCE if to is None else f"distances are to the {to} clips", *left_out]


def settings_of(config: EvaluateConfig, folder: Path) -> dict[str, object]:
    """What decided the figures of a folder's world."""
    reward = config.reward
    raters = (
        {"raters of the preference model": raters_of(folder, reward.preference_file)}
        if PREFERENCE in reward.weights
        else {}
    )
    return {
        "prompts": config.prompts,
        "seed": config.seed,
        "temperature": config.sampling.temperature,
        "guidance": config.sampling.guidance,
        "top_k": config.sampling.top_k,
        "rewards": ", ".join(f"{weight:g} x {k}" for k, weight in reward.weights.items()),
        **raters,
    }


def to_markdown(evaluation: Evaluation, settings: Mapping[str, object]) -> str:
    """The report.md."""
    parts = [
        f"# {TITLE}",
        NO_PERSON,
        *(f"## {title}\n\n{markdown_table(table)}" for title, table in sections(evaluation)),
        "\n".join(f"- {line}" for line in told(evaluation)),
        f"## Settings\n\n{markdown_table(_settings_table(settings))}",
    ]
    return "\n\n".join(parts) + "\n"


def to_html(evaluation: Evaluation, settings: Mapping[str, object]) -> str:
    """The report.html."""
    parts = [
        f"<h1>{TITLE}</h1>",
        f'<p class="warning">{escape(NO_PERSON)}</p>',
        *(f"<h2>{escape(t)}</h2>{html_table(table)}" for t, table in sections(evaluation)),
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in told(evaluation)) + "</ul>",
        f"<h2>Settings</h2>{html_table(_settings_table(settings))}",
    ]
    return page(TITLE, "".join(parts))


def _settings_table(settings: Mapping[str, object]) -> Table:
    return ("setting", "value"), [(name, str(value)) for name, value in settings.items()]
