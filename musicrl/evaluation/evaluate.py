"""`musicrl evaluate`: measure every row, and say what was measured.

What is measured stands in `rows.py`, how the tables read in `report.py`.
"""

from __future__ import annotations

import json

from rich.console import Console

from musicrl.allocator import keep_freed_memory
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.document import terminal_table
from musicrl.evaluation.family import MUSICLM, Family
from musicrl.evaluation.heldout import differences, win_rates
from musicrl.evaluation.origin import BASE
from musicrl.evaluation.reference import RealClips
from musicrl.evaluation.report import sections, settings_of, to_html, to_markdown, told
from musicrl.evaluation.rows import Evaluation, evaluate_rows
from musicrl.textfile import write_text
from musicrl.world import find_world


def run_evaluation(
    config: EvaluateConfig,
    console: Console | None = None,
    *,
    real: RealClips | None = None,
    family: Family = MUSICLM,
) -> dict[str, object]:
    """Measure every row, print the tables, write the files that are asked for; what JSON holds.

    `real` are the clips of `config.world`, at best twice as many as there are prompts.
    """
    console = console or Console()
    keep_freed_memory()
    evaluation = evaluate_rows(config, real=real, family=family)
    for _, table in sections(evaluation):
        console.print(terminal_table(table))
    for line in told(evaluation):
        console.print(line, soft_wrap=True)
    report = to_report(config, evaluation)
    if config.out is not None:
        settings = settings_of(config, find_world(config.weights))
        write_text(config.out / "report.md", to_markdown(evaluation, settings))
        write_text(config.out / "report.html", to_html(evaluation, settings))
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def to_report(config: EvaluateConfig, evaluation: Evaluation) -> dict[str, object]:
    """What the JSON file holds."""
    results = evaluation.results
    base, others = results[BASE], {k: v for k, v in results.items() if k != BASE}
    return {
        "seed": config.seed,
        "temperature": config.sampling.temperature,
        "top_k": config.sampling.top_k,
        "rows": {name: result.to_json() for name, result in results.items()},
        "differences": {
            name: {key: change.to_json() for key, change in differences(base, result).items()}
            for name, result in others.items()
        },
        "win_rates": {
            name: {key: rate.to_json() for key, rate in win_rates(base, result).items()}
            for name, result in others.items()
        },
        "sets": {
            "reference": evaluation.reference,
            "rows": {name: found.to_json() for name, found in evaluation.sets.items()},
        },
        "codec": {
            name: {key: found.to_json() for key, found in row.items()}
            for name, row in evaluation.codec.items()
        },
        "bars": {
            name: {key: found.to_json() for key, found in row.items()}
            for name, row in evaluation.bars.items()
        },
        "kept": {name: found.to_json() for name, found in evaluation.kept.items()},
        "unseen": {
            name: {key: found.to_json() for key, found in row.items()}
            for name, row in evaluation.unseen.items()
        },
        "left_out": dict(evaluation.left_out),
    }
