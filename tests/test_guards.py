"""Guards on hand-made figures: they trip past the limit, not at it, say so once, and clear."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from musicrl.config import TrainConfig
from musicrl.evaluation.heldout import EvaluationResult
from musicrl.guards import GUARDS, GuardConfig, Watch
from musicrl.settings import build
from musicrl.types import Prompt

HEALTHY = {
    "kl/sequence": 4.0,
    "entropy/stream/semantic": 0.7,
    "entropy/stream/coarse1.0": 1.1,
    "update/skipped": 0.0,
    "policy/grad_norm": 10.0,
    "reward/mean": 0.5,
}


def heard(reward: Sequence[float], **judges: Sequence[float]) -> EvaluationResult:
    """An evaluation of as many prompts as there are rewards; `pitch_variety` is the judge's."""
    columns = {f"judge/{name.replace('_', '-')}": values for name, values in judges.items()}
    return EvaluationResult(
        prompts=tuple(Prompt(id=str(i), text=f"tune {i}") for i in range(len(reward))),
        columns={k: np.array(v, np.float64) for k, v in {"reward": reward, **columns}.items()},
    )


def watch_updates(watch: Watch, name: str, values: Sequence[float]) -> list[str]:
    """All that is said about updates with these values of a figure."""
    first = max(watch._updates, default=-1) + 1
    said = [watch.update(first + i, {**HEALTHY, name: v}) for i, v in enumerate(values)]
    return [sentence for sentences in said for sentence in sentences]


def test_healthy_figures_trip_nothing() -> None:
    watch = Watch(GuardConfig())
    fine = heard([0.5, 0.7], embedding=[0.5, 0.7], sounding=[1, 0.9], pitch_variety=[1.5, 1.7])
    assert watch.evaluation(0, fine, can_stop=False) == []
    assert watch_updates(watch, "kl/sequence", [4.0] * 20) == []
    assert watch.evaluation(20, fine, can_stop=False) == []
    scalars = watch.scalars(is_heldout=False) | watch.scalars(is_heldout=True)
    assert scalars == {f"guard/{name}": 0.0 for name in GUARDS}
    assert watch.stopped_by is None


def test_kl_trips_above_its_limit_once_and_clears() -> None:
    watch = Watch(GuardConfig(max_kl=5.0, window=3))
    assert watch_updates(watch, "kl/sequence", [5.0, 5.0, 5.0, 6.0]) == []
    assert watch_updates(watch, "kl/sequence", [6.0, 7.0, 8.0]) == [
        "guard max_kl: kl/sequence is 6 nats a clip after step 5, above guards.max_kl 5"
    ]
    assert watch.scalars(is_heldout=False)["guard/max_kl"] == 1.0
    assert watch_updates(watch, "kl/sequence", [1.0, 5.0]) == [
        "guard max_kl: clear again after step 9"
    ]
    assert watch.scalars(is_heldout=False)["guard/max_kl"] == 0.0
    assert watch.first["max_kl"].step == 5


def test_one_noisy_update_or_a_window_that_is_not_full_trips_nothing() -> None:
    watch = Watch(GuardConfig(max_kl=5.0, window=3))
    assert watch_updates(watch, "kl/sequence", [100.0, 1.0, 1.0, 100.0, 1.0, 1.0]) == []
    assert watch_updates(Watch(GuardConfig(max_kl=5.0)), "kl/sequence", [100.0] * 4) == []


def test_entropy_trips_on_the_least_random_stream() -> None:
    watch = Watch(GuardConfig(min_entropy=0.25, window=2))
    assert watch_updates(watch, "entropy/stream/coarse1.0", [0.25, 0.25]) == []
    assert watch_updates(watch, "entropy/stream/coarse1.0", [0.125, 0.125]) == [
        (
            "guard min_entropy: entropy/stream/coarse1.0 is 0.1875 nats a token after step 3, "
            "below guards.min_entropy 0.25"
        )
    ]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("update/skipped", 1.0),
        ("policy/grad_norm", math.nan),
        ("advantage/std", math.inf),
        ("kl/sequence", math.nan),
    ],
)
def test_updates_that_went_wrong_are_counted_in_the_window(name: str, wrong: float) -> None:
    watch, fine = Watch(GuardConfig(max_skipped=1, window=3)), HEALTHY.get(name, 1.0)
    assert watch_updates(watch, name, [wrong, fine, fine, wrong]) == []
    assert watch_updates(watch, name, [fine, wrong]) == [
        "guard max_skipped: update/skipped is 2 updates after step 6, above guards.max_skipped 1"
    ]
    assert watch_updates(watch, name, [fine]) == ["guard max_skipped: clear again after step 7"]


def test_a_figure_that_cannot_be_told_changes_nothing() -> None:
    watch = Watch(GuardConfig(max_kl=5.0, window=3))
    assert len(watch_updates(watch, "kl/sequence", [6.0, 6.0, 6.0])) == 1
    assert watch_updates(watch, "kl/sequence", [math.nan]) == []
    assert "max_kl" in watch.active


def test_held_out_reward_falls_while_the_trained_one_rises() -> None:
    """Paired differences of -1 and -3: their mean is -2, its standard error 1."""
    watch = Watch(GuardConfig(heldout_fall=2.0, window=2))
    watch.evaluation(0, heard([4.0, 6.0]), can_stop=False)
    watch_updates(watch, "reward/mean", [0.1, 0.2, 0.3, 0.4])
    assert watch.evaluation(4, heard([3.0, 3.0]), can_stop=True) == []
    assert watch.evaluation(4, heard([2.75, 2.75]), can_stop=True) == [
        (
            "guard heldout_fall: fall of reward is 2.25 standard errors after step 4, "
            "above guards.heldout_fall 2"
        )
    ]
    assert not watch.is_heldout_sound
    watch_updates(watch, "reward/mean", [0.1, 0.1])
    assert watch.evaluation(6, heard([2.0, 2.0]), can_stop=True) == [
        "guard heldout_fall: clear again after step 6"
    ]


def test_the_fall_is_measured_from_the_best_evaluation() -> None:
    watch = Watch(GuardConfig(window=2))
    watch.evaluation(0, heard([1.0, 1.0]), can_stop=False)
    watch_updates(watch, "reward/mean", [0.1, 0.2])
    assert watch.evaluation(2, heard([5.0, 7.0]), can_stop=True) == []
    watch_updates(watch, "reward/mean", [0.3, 0.4])
    assert len(watch.evaluation(4, heard([2.0, 2.0]), can_stop=True)) == 1


def test_a_judge_falls_while_the_held_out_reward_rises() -> None:
    watch = Watch(GuardConfig(judge_fall=2.0))
    watch.evaluation(0, heard([1, 1], embedding=[4, 6], tagger=[1, 1]), can_stop=False)
    same = heard([2, 2], embedding=[3, 3], tagger=[1, 1])
    assert watch.evaluation(1, same, can_stop=True) == []
    fallen = heard([2, 2], embedding=[2.75, 2.75], tagger=[1, 1])
    assert watch.evaluation(1, fallen, can_stop=True) == [
        (
            "guard judge_fall: fall of judge/embedding is 2.25 standard errors after step 1, "
            "above guards.judge_fall 2"
        )
    ]
    both = heard([1, 1], embedding=[2, 2], tagger=[1, 1])
    assert watch.evaluation(2, both, can_stop=True) == [
        "guard judge_fall: clear again after step 2"
    ]


@pytest.mark.parametrize(
    ("guard", "judge", "at", "past", "sentence"),
    [
        ("max_silence", "sounding", 0.75, 0.5, "1 - judge/sounding is 0.5 of the time"),
        ("max_clipping", "clipping", 0.25, 0.5, "judge/clipping is 0.5 of the samples"),
        ("min_pitch_variety", "pitch_variety", 0.25, 0.125, "judge/pitch-variety is 0.125 nats"),
    ],
)
def test_sound_that_decays_trips_past_its_limit(
    guard: str, judge: str, at: float, past: float, sentence: str
) -> None:
    watch = Watch(build(GuardConfig, {guard: 0.25}, origin="test"))
    assert watch.evaluation(1, heard([1, 1], **{judge: [at, at]}), can_stop=True) == []
    side = "below" if guard.startswith("min") else "above"
    assert watch.evaluation(2, heard([1, 1], **{judge: [past, past]}), can_stop=True) == [
        f"guard {guard}: {sentence} after step 2, {side} guards.{guard} 0.25"
    ]
    silent = heard([1, 1], **{judge: [math.nan, math.nan]})
    assert watch.evaluation(3, silent, can_stop=True) == []
    assert guard in watch.active


def test_only_a_guard_that_is_named_stops_and_the_first_one_is_kept() -> None:
    config = GuardConfig(max_kl=5.0, max_skipped=0, window=2, stop=("max_kl", "max_skipped"))
    watch = Watch(config)
    watch_updates(watch, "entropy/stream/semantic", [0.0, 0.0])
    assert "min_entropy" in watch.first
    assert watch.stopped_by is None
    watch_updates(watch, "kl/sequence", [6.0, 6.0])
    watch_updates(watch, "update/skipped", [1.0])
    assert watch.stopped_by is not None
    assert watch.stopped_by.to_json() == {
        "guard": "max_kl",
        "figure": "kl/sequence",
        "value": 6.0,
        "limit": 5.0,
        "step": 4,
    }


def test_the_evaluation_before_training_warns_and_stops_nothing() -> None:
    config = GuardConfig(min_pitch_variety=1.0, stop=("min_pitch_variety",), evaluate_every=1)
    watch, dull = Watch(config), heard([1, 1], pitch_variety=[0.5, 0.5])
    assert len(watch.evaluation(0, dull, can_stop=False)) == 1
    assert watch.stopped_by is None
    assert watch.evaluation(1, dull, can_stop=True) == []
    assert watch.stopped_by is not None
    assert watch.stopped_by.step == 1


def test_a_guard_that_is_off_says_nothing() -> None:
    watch = Watch(GuardConfig(max_kl=None))
    assert watch_updates(watch, "kl/sequence", [1e9] * 9) == []
    assert "guard/max_kl" not in watch.scalars(is_heldout=False)


def test_steps_done_again_after_a_death_replace_the_first_ones() -> None:
    watch = Watch(GuardConfig(max_kl=5.0, window=3))
    watch_updates(watch, "kl/sequence", [1.0, 6.0])
    assert watch.update(1, {**HEALTHY, "kl/sequence": 6.0}) == []
    assert len(watch.update(2, {**HEALTHY, "kl/sequence": 6.0})) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": 0}, "guards.window must be 1 or more, got 0"),
        ({"evaluate_every": -1}, "guards.evaluate_every must not be negative, got -1"),
        ({"max_kl": -1.0}, "guards.max_kl must be a number from 0 on, got -1.0"),
        ({"max_kl": math.nan}, "guards.max_kl must be a number from 0 on, got nan"),
        ({"max_skipped": 5}, "guards.max_skipped 5 never trips: guards.window is 5"),
        ({"restore_best": True}, "guards.restore_best needs guards.evaluate_every"),
        ({"stop": ["max_kI"]}, "guards.stop names no guard 'max_kI' (nearest: max_kl)"),
        (
            {"stop": ["max_kl"], "max_kl": None},
            "guards.stop names max_kl, but guards.max_kl is off",
        ),
        ({"stop": ["judge_fall"]}, "guards.stop judge_fall needs guards.evaluate_every"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'test: {sentence}')}$"):
        build(GuardConfig, settings, origin="test")


def test_a_stop_by_kl_needs_a_kl() -> None:
    tree = {"guards": {"stop": ["max_kl"]}, "algorithm": {"alpha": 0.0, "report_kl": False}}
    with pytest.raises(ValueError, match=r"guards\.stop max_kl needs algorithm\.alpha above 0"):
        build(TrainConfig, tree, origin="test")
