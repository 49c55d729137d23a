"""A reproduction from its settings to its files: plan, steps of every seed, report, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from musicrl.lock import held
from musicrl.metrics import Metrics
from musicrl.policies.preference import read_facts
from musicrl.reproduction.config import ReproduceConfig
from musicrl.reproduction.findings import (
    CONTROL,
    PairFinding,
    SeedFindings,
    model_rows,
    orderings,
    pair_findings,
    text_change,
)
from musicrl.reproduction.kept import kept_findings
from musicrl.reproduction.page import to_html
from musicrl.reproduction.plan import planned
from musicrl.reproduction.recipes import BASE
from musicrl.reproduction.report import Report, music_said, music_verdict, to_markdown, verdict
from musicrl.reproduction.reproduce import Train, seeds_of
from musicrl.textfile import write_text
from musicrl.types import Clips
from musicrl.world import World


def reproduce(
    config: ReproduceConfig, train: Train, console: Console | None = None
) -> dict[str, Any]:
    """Do what is left to do, write the report, print its pairs; what report.json holds.

    `train` trains one run. Raises KeyboardInterrupt when a run was asked to stop, and ValueError
    or FileNotFoundError for what cannot be run, before anything is trained where possible, and
    ValueError where another process works in `config.out`.
    """
    with held(config.out):
        return _reproduce(config, train, console or Console())


def _reproduce(config: ReproduceConfig, train: Train, console: Console) -> dict[str, Any]:

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, soft_wrap=True)

    config = planned(config, say)
    found = [seed.run(train) for seed in seeds_of(config, say)]
    report = make_report(config, found)
    values = report.to_json()
    clips = {name: audio_of(config, found[0], name) for name in found[0].models if name != CONTROL}
    prompts = found[0].models[BASE].result.prompts[: config.audio_prompts]
    write_text(config.out / "report.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    write_text(config.out / "report.md", to_markdown(report))
    write_text(config.out / "report.html", to_html(report, prompts, clips))
    write_events(config.out / "tensorboard", values)
    for rater in dict.fromkeys(pair.rater for pair in report.pairs):
        console.print(_table(rater, report.pairs))
    say(verdict(report))
    for sentence in (music_verdict(report), *music_said(report)):
        say(sentence)
    say(f"report in {config.out / 'report.html'}")
    return values


def _table(rater: str, pairs: Sequence[PairFinding]) -> Table:
    """One panel's pairs, narrow enough for a terminal."""
    table = Table("pair", "seed", "win/tie/loss", "win rate (95 %)", title=rater)
    for row in pairs:
        if row.rater == rater:
            found = row.found
            counts = f"{found.wins}/{found.ties}/{found.losses}"
            table.add_row(f"{row.a} over {row.b}", str(row.seed), counts, str(found))
    return table


def make_report(config: ReproduceConfig, seeds: Sequence[SeedFindings]) -> Report:
    """The report of what every seed found."""
    pairs = pair_findings(seeds)
    preference = seeds_of(config, lambda _: None)[0].preference
    updates = {name: count for seed in seeds for name, count in seed.updates.items()}
    return Report(
        settings={**config.told(), "updates": updates},
        preference=read_facts(preference),
        pairs=pairs,
        orderings=orderings(pairs),
        kept=kept_findings(seeds),
        models=[row for seed in seeds for row in model_rows(seed)],
        text={
            f"{name}, seed {seed.seed}": text_change(seed, name)
            for seed in seeds
            for name in seed.updates
        },
    )


def audio_of(config: ReproduceConfig, found: SeedFindings, name: str) -> Clips:
    """The first clips of a model, decoded from their tokens."""
    world = World.load(config.weights)
    audio = world.decode(found.models[name].tokens[: config.audio_prompts])
    return Clips(audio=audio, sample_rate=world.sample_rate)


def write_events(folder: Path, report: Mapping[str, Any]) -> None:
    """Win rates and rewards as TensorBoard scalars, by seed."""
    for old in folder.glob("events.*"):
        old.unlink()
    metrics = Metrics(folder)
    for pair in report["pairs"]:
        if isinstance(pair["seed"], int) and pair["win_rate"] is not None:
            name = f"win_rate/{pair['rater']}/{pair['a']} over {pair['b']}"
            metrics.scalars(pair["seed"], {name: pair["win_rate"]})
    for row in report["models"]:
        figures = {f"reward/{k}/{row['name']}": v["mean"] for k, v in row["rewards"].items()}
        figures[f"kl/{row['name']}"] = row["kl"]["base"]["total"]["mean"]
        metrics.scalars(row["seed"], {k: v for k, v in figures.items() if v is not None})
    metrics.close()
