"""Figures of predicted opinions: do they order graded clips as what was done to them does?

Pure functions of numbers; knows neither models nor audio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from musicrl.pretrain.degradations import CODEC, COLDEST, HOTTEST, POLICY
from musicrl.pretrain.graded import CLEAN, Grade

FIGURES = ("spearman", "pairs", "auc")
Scores = NDArray[np.float64]


def measure_opinions(scores: Scores, grades: Sequence[Grade]) -> dict[str, float]:
    """Figures of scores [clips] of graded clips.

    `error`: root mean square distance to the label. For each kind, and as a mean over them:
    `spearman`, the rank correlation of score and label (mean over the bases); `pairs`, how often
    the less damaged one of two clips of a source scores higher (ties count half); `auc`, how often
    an undamaged clip of the same base scores above a damaged one. `mos` and `sd`: mean and
    deviation of the scores of undamaged clips, of each number of codec levels and of each
    temperature.
    """
    labels = np.array([grade.opinion for grade in grades])
    facts = {"error": float(np.sqrt(np.square(scores - labels).mean()))}
    kinds = sorted({grade.kind for grade in grades} - {CLEAN})
    found = [(f"{name}/{k}", value) for k in kinds for name, value in _of_kind(k, scores, grades)]
    for figure in FIGURES:
        values = [value for name, value in found if name.startswith(figure)]
        facts |= {f"{figure}/mean": float(np.mean(values))} if values else {}
    facts |= dict(found)
    for name, members in _families(grades).items():
        facts[f"mos/{name}"] = float(scores[members].mean())
        facts[f"sd/{name}"] = float(scores[members].std())
    return facts


def _of_kind(kind: str, scores: Scores, grades: Sequence[Grade]) -> Iterator[tuple[str, float]]:
    """The figures of a kind that can be told: one needs two labels, one undamaged clips."""
    bases = dict.fromkeys(grade.base for grade in grades if grade.kind == kind)
    labels = np.array([grade.opinion for grade in grades])
    correlations, areas, ordered = [], [], []
    for base in bases:
        damaged = _members(grades, kind, base)
        correlations.append(float(spearmanr(scores[damaged], labels[damaged]).statistic))
        ordered += _ordered(scores[damaged], [grades[i] for i in damaged])
        clean = _members(grades, CLEAN, "real" if kind == CODEC else base)
        if len(clean):
            areas.append(area(scores[clean], scores[damaged]))
    yield "spearman", float(np.mean(correlations))
    if ordered:
        yield "pairs", float(np.mean(ordered))
    if areas:
        yield "auc", float(np.mean(areas))


def _ordered(scores: Scores, grades: Sequence[Grade]) -> list[float]:
    """For every pair of clips of a source and different label: 1 where the better one scores
    higher, 1/2 for a tie, else 0."""
    groups: dict[str, list[int]] = {}
    for index, grade in enumerate(grades):
        groups.setdefault(grade.group, []).append(index)
    return [
        float(np.sign(scores[i] - scores[j]) + 1) / 2
        for members in groups.values()
        for i in members
        for j in members
        if grades[i].opinion > grades[j].opinion
    ]


def area(better: Scores, worse: Scores) -> float:
    """Probability that one of `better` [n] is above one of `worse` [m], ties counting half: the
    area under the curve of telling them apart (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([better, worse]))[: len(better)].sum()
    return float((ranks - len(better) * (len(better) + 1) / 2) / (len(better) * len(worse)))


def _members(grades: Sequence[Grade], kind: str, base: str) -> NDArray[np.int64]:
    return np.flatnonzero([grade.kind == kind and grade.base == base for grade in grades])


def _families(grades: Sequence[Grade]) -> dict[str, NDArray[np.int64]]:
    """Clips that differ in content alone, by name."""
    found: dict[str, list[int]] = {}
    for index, grade in enumerate(grades):
        if grade.kind == CLEAN:
            found.setdefault(f"clean-{grade.base}", []).append(index)
        elif grade.kind == CODEC:
            found.setdefault(f"codec-without-{grade.strength:.2f}", []).append(index)
        elif grade.kind == POLICY:
            temperature = COLDEST + grade.strength * (HOTTEST - COLDEST)
            found.setdefault(f"policy-at-{temperature:.2f}", []).append(index)
    return {name: np.array(members) for name, members in found.items()}
