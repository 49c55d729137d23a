"""`prefs winrate`: which policy's clips raters marked higher (paper section 4.3).

Where a rater marked clips of two policies for one prompt, the marks are a pair. People and simulated
raters are never counted together. The statistics stand in `musicrl/evaluation/winrate.py`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from musicrl.evaluation.figures import Figure
from musicrl.evaluation.winrate import Marks, WinRate, opinion, win_rate
from musicrl.preference.dataset import read_ratings
from musicrl.types import Rating

PEOPLE, SIMULATED = "people", "simulated raters"
Heard = dict[tuple[str, str], dict[str, float]]
"""Mean mark of each policy, by (rater, prompt)."""


@dataclass(frozen=True, kw_only=True)
class WinRateConfig:
    """Compare the policies whose clips were marked."""

    files: tuple[Path, ...] = ()
    """Parquet files of ratings."""
    seed: int = 0
    """Of the bootstrap."""
    json: Path | None = None
    """File that receives the figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPair:
    """Two policies in the eyes of people or of simulated raters."""

    a: str
    b: str
    raters: str
    found: WinRate

    def to_json(self) -> dict[str, object]:
        return {"a": self.a, "b": self.b, "rater": self.raters, **self.found.to_json()}


def compare_policies(config: WinRateConfig, console: Console | None = None) -> dict[str, object]:
    """Print win rates and mean opinions, write the JSON file if asked; what it holds.

    Raises FileNotFoundError or ValueError naming a file that cannot be read, and ValueError when
    nobody marked clips of two policies for one prompt.
    """
    kinds = marks_by_rater(r for rows in read_ratings(config.files) for r in rows)
    pairs = [
        pair for kind, heard in kinds.items() for pair in policy_pairs(kind, heard, config.seed)
    ]
    if not pairs:
        raise ValueError("nobody marked clips of two policies for one prompt: nothing to compare")
    opinions = {kind: policy_opinions(heard) for kind, heard in kinds.items()}
    report: dict[str, object] = {
        "pairs": [pair.to_json() for pair in pairs],
        "mos": {
            kind: {policy: found.to_json() for policy, found in rows.items()}
            for kind, rows in opinions.items()
        },
    }
    _show(console or Console(), pairs, opinions)
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def marks_by_rater(ratings: Iterable[Rating]) -> dict[str, Heard]:
    """Mean mark of each policy for each rater and prompt, of people and of simulated raters."""
    marks: dict[str, dict[tuple[str, str], dict[str, list[int]]]] = {}
    for rating in ratings:
        kind = marks.setdefault(SIMULATED if rating.simulated else PEOPLE, {})
        heard = kind.setdefault((rating.rater, rating.prompt.text), defaultdict(list))
        heard[rating.clip.policy].append(rating.score)
    return {
        kind: {
            key: {policy: float(np.mean(scores)) for policy, scores in heard.items()}
            for key, heard in rows.items()
        }
        for kind, rows in marks.items()
    }


def policy_pairs(kind: str, heard: Heard, seed: int = 0) -> list[PolicyPair]:
    """Every two policies that a rater marked for one prompt, by name."""
    policies = sorted({policy for marks in heard.values() for policy in marks})
    return [
        PolicyPair(a=a, b=b, raters=kind, found=win_rate(marks, seed=seed))
        for a, b in combinations(policies, 2)
        if len((marks := pair_marks(heard, a, b)).a)
    ]


def pair_marks(heard: Heard, a: str, b: str) -> Marks:
    """The marks of who marked both policies for a prompt."""
    both = [(prompt, m[a], m[b]) for (_, prompt), m in heard.items() if a in m and b in m]
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for p, _, _ in both))}
    return Marks(
        a=np.array([mark for _, mark, _ in both], np.float64),
        b=np.array([mark for _, _, mark in both], np.float64),
        prompt=np.array([numbers[prompt] for prompt, _, _ in both], np.int64),
    )


def policy_opinions(heard: Heard) -> dict[str, Figure]:
    """Mean opinion of every policy, over all who marked it; the standard error over prompts."""
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for _, p in heard))}
    policies = sorted({policy for marks in heard.values() for policy in marks})
    found = {}
    for policy in policies:
        rows = [(m[policy], numbers[prompt]) for (_, prompt), m in heard.items() if policy in m]
        marks, prompts = (np.array(column) for column in zip(*rows, strict=True))
        found[policy] = opinion(marks.astype(np.float64), prompts.astype(np.int64))
    return found


def _show(
    console: Console, pairs: Sequence[PolicyPair], opinions: Mapping[str, Mapping[str, Figure]]
) -> None:
    table = Table("a", "b", "raters", "wins", "ties", "losses", "win rate of a (95 %)", "p")
    for pair in pairs:
        found = pair.found
        p = f"{found.p_value:.2g}" if np.isfinite(found.p_value) else "-"
        counts = map(str, (found.wins, found.ties, found.losses))
        table.add_row(pair.a, pair.b, pair.raters, *counts, str(found), p)
    console.print(table)
    marks = Table("policy", "raters", "mean opinion, 1 to 5")
    for kind, rows in opinions.items():
        for policy, figure in rows.items():
            marks.add_row(policy, kind, str(figure))
    console.print(marks)
