"""Every contradictory or unused setting is refused with a sentence that names it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from musicrl.algorithms import ALGORITHMS, make_algorithm
from musicrl.algorithms.config import AlgorithmConfig

REFUSED = [
    ({"name": "grpo"}, "name 'grpo'"),
    ({"alpha": 1.0}, "alpha"),
    ({"alpha": -0.1}, "alpha"),
    ({"kl_in": "reward"}, "kl_in 'reward' needs kl_estimator 'k1'"),
    ({"kl_in": "reward", "kl_estimator": "k3"}, "kl_estimator 'k1'"),
    ({"kl_in": "reward", "kl_estimator": "k1", "alpha": 0.0}, "kl_in 'reward' has no effect"),
    ({"kl_target": 5.0, "alpha": 0.0}, "kl_target"),
    ({"kl_target": 0.0}, "kl_target"),
    ({"report_kl": False}, "report_kl"),
    ({"name": "ppo"}, "needs clip_ratio"),
    ({"clip_ratio": 0.2}, "clip_ratio is read only"),
    ({"name": "ppo", "clip_ratio": 1.5}, "clip_ratio"),
    ({"name": "ppo", "clip_ratio": 0.2, "importance_cap": 2.0}, "importance_cap"),
    ({"importance_cap": 0.5}, "importance_cap"),
    ({"trace_cap": 1.0}, "at most importance_cap, got 1.0 and None"),
    ({"trace_cap": 2.0, "importance_cap": 1.0}, "at most importance_cap, got 2.0 and 1.0"),
    ({"trace_cap": 1.0, "importance_cap": 1.0, "baseline": "none"}, "needs baseline 'value'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlgorithmConfig(**settings)  # type: ignore[arg-type]


def test_the_defaults_are_the_papers_algorithm() -> None:
    algorithm = make_algorithm(AlgorithmConfig())
    assert algorithm.needs_value
    assert algorithm.needs_reference_distribution
    assert not algorithm.needs_reference_tokens


def test_the_reference_is_not_needed_without_alpha_and_report() -> None:
    algorithm = make_algorithm(AlgorithmConfig(alpha=0.0, report_kl=False))
    assert not algorithm.needs_reference_distribution
    assert not algorithm.needs_reference_tokens


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_entry_of_the_table_can_be_made(name: str) -> None:
    config = AlgorithmConfig(name="ppo", clip_ratio=0.2) if name == "ppo" else AlgorithmConfig()
    assert make_algorithm(replace(config, alpha=0.01)).alpha == 0.01


def test_adaptive_kl_raises_alpha_above_the_target_and_lowers_it_below() -> None:
    algorithm = make_algorithm(AlgorithmConfig(alpha=0.5, kl_target=10.0))
    algorithm.adapt(100.0)
    assert algorithm.alpha == pytest.approx(1.02 / 2.02)
    algorithm.adapt(0.0)
    assert algorithm.alpha == pytest.approx(1.02 * 0.98 / (1 + 1.02 * 0.98))


def test_alpha_is_fixed_without_a_target() -> None:
    algorithm = make_algorithm(AlgorithmConfig(alpha=0.5))
    algorithm.adapt(100.0)
    assert algorithm.alpha == 0.5
