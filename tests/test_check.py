"""Pairs of settings that contradict each other across packages."""

from __future__ import annotations

import pytest

from musicrl.algorithms.config import AlgorithmConfig
from musicrl.check import check_settings
from musicrl.update_config import UpdateConfig

PPO = AlgorithmConfig(name="ppo", clip_ratio=0.2)
CAPPED = AlgorithmConfig(importance_cap=2.0)
GROUPS = AlgorithmConfig(baseline="group_mean")
NO_BASELINE = AlgorithmConfig(baseline="none")


def check(
    algorithm: AlgorithmConfig | None = None,
    update: UpdateConfig | None = None,
    *,
    samples_per_prompt: int = 4,
    max_lag: int = 0,
    reuse: int = 1,
    is_replayed: bool = False,
) -> None:
    check_settings(
        algorithm=algorithm or AlgorithmConfig(),
        update=update or UpdateConfig(),
        samples_per_prompt=samples_per_prompt,
        max_lag=max_lag,
        reuse=reuse,
        is_replayed=is_replayed,
    )


def test_sound_settings_pass() -> None:
    check()
    check(samples_per_prompt=1, max_lag=2)
    check(PPO, UpdateConfig(epochs=2))
    check(PPO, UpdateConfig(minibatches=2))
    check(PPO, max_lag=1)
    check(CAPPED, max_lag=1)
    check(CAPPED, is_replayed=True)
    check(CAPPED, UpdateConfig(epochs=2))
    check(GROUPS)
    check(update=UpdateConfig(value_learning_rate=1e-3, value_warmup_steps=5))


def test_a_clip_that_never_acts_is_refused() -> None:
    with pytest.raises(ValueError, match="'ppo' never clips"):
        check(PPO)


def test_a_cap_that_never_acts_is_refused() -> None:
    with pytest.raises(ValueError, match="importance_cap is unused"):
        check(CAPPED)


def test_several_steps_on_the_same_samples_need_a_correction() -> None:
    with pytest.raises(ValueError, match=r"need algorithm\.name 'ppo'"):
        check(update=UpdateConfig(epochs=2))


def test_reused_samples_need_a_correction() -> None:
    check(CAPPED, max_lag=1, reuse=2)
    with pytest.raises(ValueError, match=r"replay\.reuse above 1 needs algorithm\.name 'ppo'"):
        check(max_lag=1, reuse=2)


def test_a_group_of_one_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="samples_per_prompt"):
        check(GROUPS, samples_per_prompt=1)


@pytest.mark.parametrize("baseline", [GROUPS, NO_BASELINE])
@pytest.mark.parametrize(
    "update", [UpdateConfig(value_learning_rate=1e-3), UpdateConfig(value_warmup_steps=1)]
)
def test_value_settings_without_a_value_network_are_refused(
    baseline: AlgorithmConfig, update: UpdateConfig
) -> None:
    with pytest.raises(ValueError, match=r"read only with algorithm\.baseline 'value'"):
        check(baseline, update)
