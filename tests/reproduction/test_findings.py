"""Pairs and orderings from marks made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from musicrl.evaluation.clipset import ClipSet
from musicrl.evaluation.heldout import EvaluationResult
from musicrl.evaluation.winrate import Marks
from musicrl.reproduction.findings import (
    CONTROL,
    SeedFindings,
    opinions,
    orderings,
    pair_findings,
    text_change,
)
from musicrl.reproduction.measured import Measured
from musicrl.types import Prompt

MODELS = ("base", CONTROL, "R", "U")


class Grades:
    """A panel that gives every clip of a model the same mark, but for the first prompt's of `odd`."""

    name = "grades"

    def __init__(self, grades: Mapping[str, float], odd: Mapping[str, float]) -> None:
        self._grades, self._odd = grades, odd

    def marks(self, a: str, b: str) -> Marks:
        return Marks(a=self._of(a), b=self._of(b), prompt=np.arange(4))

    def changes(self, model: str) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        return {}

    def _of(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        marks = np.full(4, self._grades[name])
        marks[0] = self._odd.get(name, marks[0])
        return marks


def measured(text: float) -> Measured:
    prompts = tuple(Prompt(id=str(i), text=f"tune {i}") for i in range(4))
    columns = {"reward/text": np.full(4, text) + np.arange(4) / 10}
    clips = ClipSet(embeddings={}, columns={}, tokens=None)
    result = EvaluationResult(prompts=prompts, columns=columns)
    return Measured(result=result, clips=clips, reference_kl=np.zeros(4))


def seed_of(seed: int, grades: Mapping[str, float], odd: Mapping[str, float]) -> SeedFindings:
    models = {name: measured(0.5 if name == "base" else 0.4) for name in MODELS}
    panel = Grades({CONTROL: 2.0, **grades}, odd)
    return SeedFindings(seed=seed, models=models, panels=[panel], updates={"R": 3, "U": 3})


def test_pairs_of_every_seed_and_of_all_together() -> None:
    one = seed_of(3, {"base": 2.0, "R": 4.0, "U": 1.0}, {"U": 5.0})
    other = seed_of(5, {"base": 2.0, "R": 2.0, "U": 3.0}, {})
    found = {(p.seed, p.a, p.b): p.found for p in pair_findings([one, other])}
    counts = {key: (f.wins, f.ties, f.losses) for key, f in found.items()}
    assert counts[3, "R", "base"] == (4, 0, 0)
    assert counts[5, "R", "base"] == (0, 4, 0)
    assert counts["all", "R", "base"] == (4, 4, 0)
    assert counts[3, "U", "base"] == (1, 0, 3)
    assert counts["all", "U", "base"] == (5, 0, 3)
    assert counts["all", CONTROL, "base"] == (0, 8, 0)
    assert ("all", "R", CONTROL) not in counts


@pytest.mark.parametrize(
    ("u", "odd", "verdict"),
    [
        (3.0, {}, "holds"),
        (1.0, {}, "fails"),
        (2.0, {}, "fails"),  # all are ties: there is no rate
        (3.0, {"U": 1.0}, "not shown"),  # three of four prompts
        (1.0, {"U": 3.0}, "fails"),
    ],
)
def test_what_is_said_of_an_ordering(u: float, odd: dict[str, float], verdict: str) -> None:
    found = orderings(pair_findings([seed_of(0, {"base": 2.0, "R": 2.0, "U": u}, odd)]))
    verdicts = {(o.better, o.worse): o.verdict for o in found}
    assert verdicts == {("R", "base"): "fails", ("U", "base"): verdict}


def test_opinions_are_over_all_pairs_of_a_model() -> None:
    seed = seed_of(0, {"base": 2.0, "R": 4.0, "U": 3.0}, {"R": 2.0})
    found = opinions(seed)
    assert CONTROL not in found
    assert found["R"]["grades"].mean == pytest.approx((2 + 4 + 4 + 4) / 4)
    assert found["R"]["grades"].count == 8  # against the base and against U
    judged = replace(seed, panels=[Judge({"base": 1.0, "R": 1.0, "U": 1.0, CONTROL: 1.0}, {})])
    assert opinions(judged)["R"] == {}


class Judge(Grades):
    name = "judge: by hand"


def test_text_adherence_is_paired_with_the_base() -> None:
    change = text_change(seed_of(0, {"base": 2.0, "R": 2.0, "U": 2.0}, {}), "U")
    assert change.mean == pytest.approx(-0.1)
    assert change.standard_error == pytest.approx(0.0, abs=1e-12)
