"""The final report of building a world: minutes, bytes and figures of every stage.

    <out>/report.md, <out>/report.json

Reads records, and the sizes of the weights; measures nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from musicrl.pretrain.pipeline import Outcome
from musicrl.textfile import write_text

NOT_OF_THE_WORLD = ("tokens-", "policy.json", "policy-noisy.json")
"""How files beside the weights begin that a world does not need to play."""
MINUTES, LONGEST, MEGABYTES = (
    "minutes of all stages",
    "minutes of the longest stage",
    "MB of weights",
)
ASKED: Mapping[str, float] = {MINUTES: 240, LONGEST: 100, MEGABYTES: 30}
"""At most, of a world that a person can build on two cores and that ships: this project's choice."""


def report_of(
    outcomes: Sequence[Outcome], out: Path, versions: Mapping[str, str]
) -> dict[str, Any]:
    """All that there is to tell, as JSON holds it; `versions` of what the numbers depend on."""
    stages = {outcome.stage.name: _row(outcome) for outcome in outcomes}
    minutes = [row["minutes"] for row in stages.values()]
    size = sum(path.stat().st_size for path in weight_files(out / "weights"))
    found = {MINUTES: sum(minutes), LONGEST: max(minutes), MEGABYTES: size / 1e6}
    return {
        "stages": stages,
        "minutes": sum(minutes),
        "bytes of the weights": size,
        "asked": {
            name: {"at most": most, "found": found[name], "holds": found[name] <= most}
            for name, most in ASKED.items()
        },
        "versions": dict(versions),
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    return {
        "minutes": record.seconds / 60,
        "attempts": record.attempts,
        "bytes": record.bytes,
        "finished": record.finished,
        "made now": outcome.is_new,
        "after an interruption": outcome.stage.resumes,
        "figures": dict(record.figures),
    }


def weight_files(folder: Path) -> list[Path]:
    """The files of a world that is ready to play."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith((".", *NOT_OF_THE_WORLD))
    ]


def write_report(report: Mapping[str, Any], out: Path, also: Path | None) -> None:
    """The report in `out`, and its JSON in `also` too."""
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_text(out / "report.json", text)
    write_text(out / "report.md", to_markdown(report))
    if also is not None:
        write_text(also, text)


def to_markdown(report: Mapping[str, Any]) -> str:
    """Three tables: what is asked of all, the stages, and every figure."""
    stages: Mapping[str, Mapping[str, Any]] = report["stages"]
    total, size = report["minutes"], report["bytes of the weights"]
    lines = [
        "# Building of a world",
        "",
        f"{total:.1f} minutes in all; the weights are {size / 1e6:.2f} MB.",
        "",
        "| asked | at most | found | |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['at most']:g} | {row['found']:.2f} "
            f"| {'holds' if row['holds'] else 'TOO MUCH'} |"
            for name, row in report["asked"].items()
        ),
        "",
        "| stage | minutes | attempts | MB | finished | after an interruption |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['minutes']:.2f} | {row['attempts']} | {row['bytes'] / 1e6:.2f} "
            f"| {row['finished']} | {row['after an interruption']} |"
            for name, row in stages.items()
        ),
        "",
        "| stage | figure | value |",
        "|---|---|---|",
        *(
            f"| {name} | {figure} | {_cell(value)} |"
            for name, row in stages.items()
            for figure, value in row["figures"].items()
        ),
        "",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def to_table(report: Mapping[str, Any]) -> Table:
    """The same for a terminal."""
    table = Table("stage", "minutes", "MB", "figure", "value")
    for name, row in report["stages"].items():
        head = [name, f"{row['minutes']:.2f}", f"{row['bytes'] / 1e6:.2f}"]
        for figure, value in row["figures"].items():
            table.add_row(*head, figure, _cell(value))
            head = ["", "", ""]
    size = report["bytes of the weights"]
    table.add_row("all", f"{report['minutes']:.2f}", f"{size / 1e6:.2f}", "(MB: weights)", "")
    return table


def _cell(value: float | None) -> str:
    """What was not measured is a dash."""
    return "-" if value is None else f"{value:.4g}"
