"""The mix of rewards: hand-computed sums, and every way in which a reward can fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from musicrl.rewards import REWARDS, RewardConfig, RewardMix, TextAdherence, make_mix, make_reward
from musicrl.rewards.base import Reward
from musicrl.rewards.mix import failures
from musicrl.types import Clips, Prompt

PROMPTS = [Prompt(id=str(i), text=f"text {i}") for i in range(3)]
CLIPS = Clips(audio=np.zeros((3, 8), np.float32), sample_rate=4)
NAN, INF = float("nan"), float("inf")


@dataclass
class Fixed:
    """Always the same scores."""

    scores: Sequence[float]
    name: str = "fixed"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> np.ndarray:
        return np.array(self.scores, np.float32)


@dataclass
class Raising:
    """Never a score."""

    fault: Exception
    name: str = "raising"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> np.ndarray:
        raise self.fault


class Outside:
    """A reward as a user would write it: its class is called with the world."""

    name = "outside"

    def __init__(self, world: object) -> None:
        self.world = world

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> np.ndarray:
        return np.ones(len(prompts), np.float32)


@dataclass(frozen=True)
class Bare:
    """A world that has only an embedder."""

    embedder: object = None


def test_the_total_is_the_weighted_sum_of_normalised_terms() -> None:
    rewards = {"text": Fixed([0.2, 0.5, -0.1]), "quality": Fixed([1.0, 3.0, 5.0])}
    mix = RewardMix(rewards, {"text": 1.0, "quality": 2.0}, {"quality": (1.0, 5.0)})
    batch = mix(PROMPTS, CLIPS)
    np.testing.assert_allclose(batch.total, [0.2, 0.5 + 1.0, -0.1 + 2.0], rtol=1e-6)
    np.testing.assert_array_equal(batch.terms["quality"], [1.0, 3.0, 5.0])  # raw
    assert batch.valid.all()
    assert batch.total.dtype == np.float32


def test_a_failed_sample_is_masked_alone() -> None:
    rewards = {"a": Fixed([1.0, NAN, 2.0]), "b": Fixed([1.0, 1.0, INF])}
    batch = RewardMix(rewards, {"a": 1.0, "b": 1.0})(PROMPTS, CLIPS)
    assert batch.valid.tolist() == [True, False, False]
    np.testing.assert_array_equal(batch.total, [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(batch.terms["b"], [1.0, 1.0, NAN])  # an infinity is a failure
    assert failures(batch) == {"a": 1, "b": 1}


@pytest.mark.parametrize("make", [lambda: Raising(RuntimeError("boom")), lambda: Fixed([1.0, 2.0])])
def test_a_reward_that_raises_or_miscounts_masks_its_batch(
    make: Callable[[], Fixed | Raising], caplog: pytest.LogCaptureFixture
) -> None:
    mix = RewardMix({"good": Fixed([1.0, 1.0, 1.0]), "bad": make()}, {"good": 1.0, "bad": 0.5})
    with caplog.at_level(logging.WARNING):
        batch = mix(PROMPTS, CLIPS)
    assert not batch.valid.any()
    assert np.isnan(batch.terms["bad"]).all()
    np.testing.assert_array_equal(batch.terms["good"], [1.0, 1.0, 1.0])
    assert "'bad' failed on 3 clips" in caplog.text


def test_a_reward_of_weight_zero_is_reported_and_masks_nothing() -> None:
    rewards: dict[str, Reward] = {"text": Fixed([0.1, 0.2, 0.3]), "shown": Raising(ValueError("x"))}
    batch = RewardMix(rewards, {"text": 1.0, "shown": 0.0})(PROMPTS, CLIPS)
    assert batch.valid.all()
    np.testing.assert_allclose(batch.total, [0.1, 0.2, 0.3], rtol=1e-6)
    assert failures(batch) == {"text": 0, "shown": 3}


def test_an_interrupt_is_not_survived() -> None:
    class Interrupted:
        name = "interrupted"

        def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardMix({"a": Interrupted()}, {"a": 1.0})(PROMPTS, CLIPS)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown reward 'txet'.*text"):
        RewardConfig(weights={"txet": 1.0})
    with pytest.raises(ValueError, match=r"range for 'test'.*text"):
        RewardConfig(ranges={"test": (1.0, 5.0)})


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({}, "at least one"),
        ({"text": 0.0}, "at least one"),
        ({"text": NAN}, "'text' must be finite, got nan"),
        ({"text": INF}, "'text' must be finite, got inf"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RewardConfig(weights=weights)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="range of reward 'text' is empty"):
        RewardConfig(ranges={"text": (1.0, 1.0)})


def test_rewards_and_weights_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="weights of"):
        RewardMix({"a": Fixed([1.0])}, {"b": 1.0})


def test_every_entry_of_the_table_is_made_from_a_world() -> None:
    assert set(REWARDS) == {"text", "quality", "preference", "aesthetics"}
    reward = make_reward("text", Bare())  # type: ignore[arg-type]
    assert isinstance(reward, TextAdherence)
    assert reward.name == "text"


def test_a_class_outside_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("outside_rewards")
    module.Outside = Outside  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outside_rewards", module)
    world = Bare()
    config = RewardConfig(weights={"outside_rewards:Outside": 3.0})
    mix = make_mix(config, world)  # type: ignore[arg-type]
    np.testing.assert_array_equal(mix(PROMPTS, CLIPS).total, [3.0, 3.0, 3.0])
    with pytest.raises(ValueError, match="has no 'Missing'"):
        make_reward("outside_rewards:Missing", world)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot import 'no_such_module'"):
        make_reward("no_such_module:X", world)  # type: ignore[arg-type]
