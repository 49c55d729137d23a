"""What models kept of music, over two seeds made by hand, and what the report says of it."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.evaluation.clipset import ClipSet
from musicrl.evaluation.heldout import EvaluationResult
from musicrl.reproduction.findings import CONTROL, SeedFindings
from musicrl.reproduction.kept import kept_findings, verdicts
from musicrl.reproduction.measured import Measured
from musicrl.reproduction.report import Report, kept_rows, music_said, music_verdict
from musicrl.types import Prompt

NOISE = np.array([0.0, 0.02, -0.02, 0.01])


def measured(text: float, preference: float, variety: float) -> Measured:
    """Four clips; quality is the same of all."""
    prompts = tuple(Prompt(id=str(i), text=f"tune {i}") for i in range(4))
    columns = {
        "reward": np.full(4, 9.0),
        "reward/text": text + NOISE,
        "reward/quality": np.full(4, 3.0),
        "reward/preference": preference + NOISE[::-1],
        "judge/pitch-variety": variety + NOISE**2,
    }
    clips = ClipSet(embeddings={}, columns={})
    result = EvaluationResult(prompts=prompts, columns=columns)
    return Measured(result=result, clips=clips, reference_kl=np.zeros(4))


def seed_of(seed: int, varieties: tuple[float, float]) -> SeedFindings:
    models = {
        "base": measured(0.5, 0.0, 1.6),
        CONTROL: measured(0.5, 0.0, 1.6),
        "R": measured(0.7, -0.5, varieties[0]),
        "U": measured(0.4, 0.5, varieties[1]),
    }
    return SeedFindings(seed=seed, models=models, panels=[], updates={"R": 3, "U": 3})


def report_of(seeds: list[SeedFindings]) -> Report:
    return Report(
        settings={},
        preference={},
        pairs=[],
        orderings=[],
        models=[],
        text={},
        kept=kept_findings(seeds),
    )


def test_each_is_read_beside_its_own_reward_over_all_seeds() -> None:
    report = report_of([seed_of(0, (1.2, 1.7)), seed_of(4, (1.4, 1.5))])
    assert [(row.seed, row.name) for row in report.kept][:3] == [
        (0, CONTROL),
        (4, CONTROL),
        ("all", CONTROL),
    ]
    control, r, u = (row.found for row in verdicts(report.kept))
    assert control.reward is None
    assert r.reward is not None
    assert u.reward is not None
    assert r.reward.change.mean == pytest.approx(0.2)  # text and a quarter of quality
    assert u.reward.change.mean == pytest.approx(0.5)  # preference alone
    assert r.music["judge/pitch-variety"].change.mean == pytest.approx(-0.3)
    assert r.music["judge/pitch-variety"].change.count == 4
    assert u.music["judge/pitch-variety"].change.mean == pytest.approx(0)
    assert music_verdict(report) == (
        "FAILED: rewards rose while figures of music fell by more than their intervals: R."
    )
    assert [sentence.split(":")[0] for sentence in music_said(report)] == [
        CONTROL,
        "R",
        "U",
        "not measured here",
    ]
    heads, _ = kept_rows(report)
    assert heads[2:] == (CONTROL, "R", "U")


def test_no_failure_is_said_where_music_holds() -> None:
    report = report_of([seed_of(0, (1.6, 1.7))])
    assert music_verdict(report).startswith("No model's reward rose while")
