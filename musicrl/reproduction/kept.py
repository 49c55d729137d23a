"""What every model kept of the base's music, of every seed and of all together.

Each is read beside the reward that it was trained on, as its recipe weighs it. The control, the base
with other random numbers, is trained on none: what is called worse of it is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrl.config import load_config
from musicrl.evaluation.heldout import REWARD
from musicrl.evaluation.kept import Kept, Paired, kept, of_columns, paired_figures, together
from musicrl.reproduction.findings import ALL_SEEDS, SeedFindings
from musicrl.reproduction.measured import Measured
from musicrl.reproduction.recipes import BASE, RECIPES
from musicrl.rewards.table import RANGES


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFinding:
    """What one model kept."""

    seed: int | str
    """Of training; `all` for all seeds together."""
    name: str
    found: Kept

    def to_json(self) -> dict[str, Any]:
        return {"seed": self.seed, "name": self.name, **self.found.to_json()}


def kept_findings(seeds: Sequence[SeedFindings]) -> list[KeptFinding]:
    """Every model but the base, of every seed and, where there are several, of all together."""
    findings = []
    for name in (name for name in seeds[0].models if name != BASE):
        rows = [_paired(seed, name) for seed in seeds]
        found: list[tuple[int | str, Kept]] = [
            (seed.seed, kept(row)) for seed, row in zip(seeds, rows, strict=True)
        ]
        if len(seeds) > 1:
            shared = [key for key in rows[0] if all(key in row for row in rows)]
            found.append((ALL_SEEDS, kept({k: together([row[k] for row in rows]) for k in shared})))
        findings += [KeptFinding(seed=seed, name=name, found=of) for seed, of in found]
    return findings


def verdicts(findings: Sequence[KeptFinding]) -> list[KeptFinding]:
    """Those of all seeds together, or of the only one."""
    return [found for found in findings if found.seed == findings[-1].seed]


def own_reward(measured: Measured, name: str) -> NDArray[np.float64]:
    """What a model was trained on, float64 [P], of clips that anybody played."""
    total = np.zeros(len(measured.result.prompts))
    for term, weight in load_config(RECIPES[name].preset).reward.weights.items():
        lowest, highest = RANGES.get(term, (0.0, 1.0))
        if weight:
            raw = measured.result.columns[f"reward/{term}"]
            total += weight * (raw - lowest) / (highest - lowest)
    return total


def _paired(seed: SeedFindings, name: str) -> dict[str, Paired]:
    base, model = seed.models[BASE], seed.models[name]
    found = paired_figures((base.result, base.clips), (model.result, model.clips))
    del found[REWARD]  # that of the measurement, the sum of all
    if name in RECIPES:
        found[REWARD] = of_columns(own_reward(base, name), own_reward(model, name))
    return found
