"""Simulated raters of the evaluation: what they agree on, what they hear, what they cannot know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from musicrl.evaluation.clipset import ClipSet
from musicrl.evaluation.heldout import EvaluationResult
from musicrl.evaluation.winrate import opinion, win_rate
from musicrl.preference.raters import SimulatedRaterConfig
from musicrl.reproduction.measured import Measured
from musicrl.reproduction.panel import (
    JUDGED,
    SIMULATED,
    SIMULATED_JUDGE,
    JudgePanel,
    PanelConfig,
    SimulatedPanel,
    column_of,
    on_scale,
    panels_of,
)
from musicrl.types import Prompt

P, D = 400, 6
CONFIG = PanelConfig(rater=SimulatedRaterConfig(weights={"text": 1.0}))


def model(seed: int, shift: float, *, judge_shift: float | None = None) -> Measured:
    """P clips whose text adherence deviates by 1 about `shift`; embeddings of D dimensions."""
    rng = np.random.default_rng(seed)
    judged = shift if judge_shift is None else judge_shift
    columns = {
        "reward/text": rng.normal(shift, 1.0, P),
        "judge/embedding": rng.normal(judged, 1.0, P),
        "judge/tagger": rng.normal(judged, 1.0, P),
    }
    prompts = tuple(Prompt(id=str(i), text=f"tune {i}") for i in range(P))
    clips = ClipSet(embeddings={"judge": rng.normal(size=(P, D))}, columns={}, tokens=None)
    result = EvaluationResult(prompts=prompts, columns=columns)
    return Measured(result=result, clips=clips, reference_kl=np.zeros(P))


MODELS = {
    "base": model(0, 0.0),
    "again": model(1, 0.0),
    "better": model(2, 1.0),
    "hacked": model(3, 1.0, judge_shift=-1.0),
}


def panel(
    config: PanelConfig = CONFIG, heard: Mapping[str, str] = MappingProxyType({})
) -> SimulatedPanel:
    return SimulatedPanel(
        SIMULATED,
        MODELS,
        heard=heard,
        base="base",
        control="again",
        config=config,
        seed=0,
    )


def test_the_base_against_itself_wins_half() -> None:
    found = win_rate(panel().marks("again", "base"))
    assert found.low < 0.5 < found.high
    assert found.wins + found.ties + found.losses == P * CONFIG.raters_per_pair


def test_two_raters_agree_as_configured() -> None:
    config = replace(CONFIG, raters_per_pair=60)
    marks = panel(config).marks("again", "base")
    outcome = np.sign(marks.a - marks.b).reshape(P, 60)
    pairs = [(outcome[:, i], outcome[:, i + 1]) for i in range(0, 60, 2)]
    decided = [(x * y)[x * y != 0] > 0 for x, y in pairs]
    # Marks that differ are the clearer choices: they agree a little more than 60 %.
    assert 0.58 < np.concatenate(decided).mean() < 0.67


def test_a_better_model_wins_and_has_the_better_opinion() -> None:
    marks = panel().marks("better", "base")
    found = win_rate(marks)
    assert found.low > 0.55
    assert found.p_value < 1e-6
    assert opinion(marks.a, marks.prompt).mean > opinion(marks.b, marks.prompt).mean + 0.2
    assert opinion(marks.b, marks.prompt).mean == pytest.approx(3.0, abs=0.1)
    assert set(np.unique(marks.a)) == {1, 2, 3, 4, 5}


def test_who_hears_by_the_heldout_judge_is_not_fooled() -> None:
    by_reward, by_judge = panel(), panel(heard=JUDGED)
    assert win_rate(by_reward.marks("hacked", "base")).low > 0.5
    assert win_rate(by_judge.marks("hacked", "base")).high < 0.5


def test_panels_say_who_is_simulated() -> None:
    names = [p.name for p in panels_of(MODELS, base="base", control="again", config=CONFIG, seed=0)]
    assert names == [SIMULATED_JUDGE, SIMULATED, "judge: embedding", "judge: tagger"]


def test_a_judges_marks_are_its_scores() -> None:
    found = JudgePanel("judge: tagger", "judge/tagger", MODELS).marks("better", "base")
    scores = [MODELS[name].result.columns["judge/tagger"] for name in ("better", "base")]
    assert win_rate(found).wins == int((scores[0] > scores[1]).sum())


def test_a_clip_without_a_score_is_left_out() -> None:
    silent = model(2, 1.0)
    silent.result.columns["reward/text"][:7] = np.nan
    models = {**MODELS, "better": silent}
    found = SimulatedPanel(
        SIMULATED,
        models,
        heard={},
        base="base",
        control="again",
        config=CONFIG,
        seed=0,
    ).marks("better", "base")
    assert win_rate(found).unmarked == 7 * CONFIG.raters_per_pair


def test_the_scale_is_the_bases_by_hand() -> None:
    # Two clips of the base for two prompts differ by 2 and 4: deviation sqrt((4 + 16) / 2 / 2).
    scores = np.array([[1.0, 5.0], [3.0, 1.0], [3.0, 8.0]])
    expected = (scores - 3.0) / np.sqrt(5.0)
    np.testing.assert_allclose(on_scale(scores, (0, 1)), expected)


def test_changes_are_paired_and_in_deviations_of_the_bases_clips() -> None:
    change = panel().changes("better")["text"]
    scores = {name: MODELS[name].result.columns["reward/text"] for name in MODELS}
    deviation = np.sqrt(np.mean((scores["base"] - scores["again"]) ** 2) / 2)
    np.testing.assert_allclose(change, (scores["better"] - scores["base"]) / deviation)
    assert not panel().changes("base")["text"].any()
    assert JudgePanel("judge: tagger", "judge/tagger", MODELS).changes("better") == {}


def test_what_never_differs_counts_for_nothing() -> None:
    np.testing.assert_array_equal(on_scale(np.ones((3, 2)), (0, 1)), np.zeros((3, 2)))


def test_where_terms_are_measured() -> None:
    assert [column_of(term, JUDGED) for term in ("text", "quality", "pitch-variety")] == [
        "judge/embedding",
        "judge/quality",
        "judge/pitch-variety",
    ]
    assert [column_of(term, {}) for term in ("text", "quality", "sounding")] == [
        "reward/text",
        "reward/quality",
        "judge/sounding",
    ]


def test_a_term_that_was_not_measured_is_named() -> None:
    config = PanelConfig(rater=SimulatedRaterConfig(weights={"text": 1.0, "quality": 1.0}))
    with pytest.raises(ValueError, match=r"'quality' needs 'judge/quality', .*pretrain quality-"):
        panels_of(MODELS, base="base", control="again", config=config, seed=0)
