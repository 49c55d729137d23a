"""What a reproduction found: win rates of all pairs, the orderings of the paper, figures of models.

Plain data for the reports; says where an ordering fails. Measures and draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from musicrl.evaluation.clipset import set_figures
from musicrl.evaluation.figures import Figure, figure, paired
from musicrl.evaluation.winrate import Marks, WinRate, opinion, win_rate
from musicrl.reproduction.measured import Measured
from musicrl.reproduction.panel import Panel
from musicrl.reproduction.recipes import BASE, RECIPES

CONTROL = "base, other clips"
"""The base again, with other random numbers: against itself it should win half of the time."""
ALL_SEEDS = "all"
PAPER: Mapping[tuple[str, str], float] = {
    ("R", BASE): 0.834,
    ("U", BASE): 0.744,
    ("RU", BASE): 0.865,
    ("RU", "R"): 0.661,
    ("RU", "U"): 0.624,
}
"""Win rates of the paper's human raters (section 5.2), all of them orderings to be found again."""
TEXT = "reward/text"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFinding:
    """How two models compare in the eyes of one panel."""

    seed: int | str
    """Of training; `all` for the pairs of all seeds together."""
    a: str
    b: str
    rater: str
    found: WinRate

    def to_json(self) -> dict[str, Any]:
        names = {"seed": self.seed, "a": self.a, "b": self.b, "rater": self.rater}
        paper = PAPER.get((self.a, self.b))
        return {**names, **self.found.to_json(), "paper": paper}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """One of the paper's orderings, and whether it was found."""

    better: str
    worse: str
    finding: PairFinding

    @property
    def verdict(self) -> str:
        """`holds` where the interval lies above one half, `fails` where the rate does not."""
        found = self.finding.found
        if not found.rate > 0.5:
            return "fails"
        return "holds" if found.low > 0.5 else "not shown"

    def to_json(self) -> dict[str, Any]:
        finding = self.finding
        return {
            "better": self.better,
            "worse": self.worse,
            "rater": finding.rater,
            "seed": finding.seed,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        said = {
            "holds": "holds",
            "not shown": "NOT SHOWN: the interval reaches 50 %",
            "fails": "FAILS",
        }
        return f"{self.better} over {self.worse}: {said[self.verdict]}; {self.finding.found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFindings:
    """One seed's models, and how they compare."""

    seed: int
    models: Mapping[str, Measured]
    """The base first, then its control, then the trained ones."""
    panels: Sequence[Panel]
    updates: Mapping[str, int]
    """Of the trained models."""

    def pairs(self) -> list[tuple[str, str]]:
        """Every pair of models, the later one first; the control only against the base."""
        names = [name for name in self.models if name != CONTROL]
        return [(CONTROL, BASE), *((b, a) for a, b in combinations(names, 2))]

    def marks(self, panel: Panel) -> dict[tuple[str, str], Marks]:
        return {(a, b): panel.marks(a, b) for a, b in self.pairs()}


def pair_findings(seeds: Sequence[SeedFindings]) -> list[PairFinding]:
    """Every pair by every panel for every seed and, where there are several, for all together."""
    found = []
    for number in range(len(seeds[0].panels)):
        name = seeds[0].panels[number].name
        marks = [seed.marks(seed.panels[number]) for seed in seeds]
        for pair in seeds[0].pairs():
            rows: list[tuple[int | str, Marks]] = [
                (seed.seed, m[pair]) for seed, m in zip(seeds, marks, strict=True)
            ]
            if len(seeds) > 1:
                rows.append((ALL_SEEDS, together([m[pair] for m in marks])))
            found += [
                PairFinding(seed=seed, a=pair[0], b=pair[1], rater=name, found=win_rate(m))
                for seed, m in rows
            ]
    return found


def together(parts: Sequence[Marks]) -> Marks:
    """Marks of several seeds. A prompt of all seeds is one unit: its caption is the same."""
    return Marks(
        a=np.concatenate([part.a for part in parts]),
        b=np.concatenate([part.b for part in parts]),
        prompt=np.concatenate([part.prompt for part in parts]),
    )


def orderings(findings: Sequence[PairFinding]) -> list[Ordering]:
    """The paper's orderings in the eyes of the first panel, over all seeds."""
    panel, seed = findings[0].rater, findings[-1].seed
    return [
        Ordering(better=row.a, worse=row.b, finding=row)
        for row in findings
        if row.rater == panel and row.seed == seed and (row.a, row.b) in PAPER
    ]


def text_change(seed: SeedFindings, model: str) -> Figure:
    """Paired change of text adherence from the base; the paper's U fell from 0.58 to 0.55."""
    before, after = (seed.models[name].result.columns[TEXT] for name in (BASE, model))
    return paired(before, after)


def opinions(seed: SeedFindings) -> dict[str, dict[str, Figure]]:
    """Mean opinion of every model by every panel that gives marks of 1 to 5, over all of its
    pairs, without the control's."""
    found: dict[str, dict[str, Figure]] = {name: {} for name in seed.models if name != CONTROL}
    for panel in seed.panels:
        if panel.name.startswith("judge"):
            continue
        marks = {pair: m for pair, m in seed.marks(panel).items() if CONTROL not in pair}
        for name, figures in found.items():
            sides = [m.a if pair[0] == name else m.b for pair, m in marks.items() if name in pair]
            prompts = [m.prompt for pair, m in marks.items() if name in pair]
            if sides:
                figures[panel.name] = opinion(np.concatenate(sides), np.concatenate(prompts))
    return found


def model_rows(seed: SeedFindings) -> list[dict[str, Any]]:
    """The figures of every model of a seed."""
    base = seed.models[BASE]
    marks = opinions(seed)
    rows = []
    for name, measured in seed.models.items():
        result = measured.result
        found = set_figures(measured.clips, base.clips, result.stream_names).to_json()
        kl = {stream: figure(column) for stream, column in result.kl.items()}
        rows.append(
            {
                "seed": seed.seed,
                "name": name,
                "updates": seed.updates.get(name, 0),
                "kl_reference": RECIPES[name].start if name in RECIPES else BASE,
                "rewards": _figures(result.columns, "reward/"),
                "judges": _figures(result.columns, "judge/"),
                "utility": {
                    term: figure(change).to_json()
                    for term, change in seed.panels[0].changes(name).items()
                },
                "mos": {rater: f.to_json() for rater, f in marks.get(name, {}).items()},
                "kl": {
                    "reference": figure(measured.reference_kl).to_json(),
                    "base": {stream: value.to_json() for stream, value in kl.items()},
                },
                "diversity": found["diversity"],
                "distances": found["distances"],
            }
        )
    return rows


def _figures(columns: Mapping[str, np.ndarray[Any, Any]], opening: str) -> dict[str, Any]:
    return {
        name.removeprefix(opening): figure(column).to_json()
        for name, column in columns.items()
        if name.startswith(opening)
    }
