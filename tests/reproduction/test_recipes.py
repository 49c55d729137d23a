"""The paper's models as settings of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from musicrl.config import ModelConfig, load_config
from musicrl.reproduction.recipes import RECIPES, ScaleConfig, run_settings, updates_of


def test_rewards_are_the_papers() -> None:
    weights = {name: load_config(r.preset).reward.weights for name, r in RECIPES.items()}
    optimised = {name: {k for k, w in row.items() if w} for name, row in weights.items()}
    assert optimised == {
        "MuLan": {"text"},
        "Quality": {"quality"},
        "R": {"text", "quality"},
        "U": {"preference"},
        "RU": {"preference"},
        "joint": {"text", "quality", "preference"},
    }


def test_the_joint_model_has_as_many_updates_as_r_and_ru() -> None:
    presets = {name: load_config(recipe.preset).iterations for name, recipe in RECIPES.items()}
    assert presets["joint"] == presets["R"] + presets["RU"]
    scaled = {name: updates_of(name, ScaleConfig(updates=60)) for name in RECIPES}
    assert scaled == {"MuLan": 60, "Quality": 60, "R": 60, "U": 24, "RU": 12, "joint": 72}
    assert updates_of("RU", ScaleConfig(updates=1)) == 1


def test_ru_has_half_of_the_updates_of_u_as_in_the_paper_unless_told_otherwise() -> None:
    usual = [updates_of(name, ScaleConfig(updates=100)) for name in ("R", "U", "RU")]
    assert usual == [100, 40, 20]
    told = ScaleConfig(updates=60, shares={"U": 1.0})
    assert [updates_of(name, told) for name in ("R", "U", "RU")] == [60, 60, 12]
    assert updates_of("U", ScaleConfig()) == 120


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_run_starts_where_it_is_told_and_decays_to_its_end(name: str, tmp_path: Path) -> None:
    start = tmp_path / "R" / "policy.safetensors"
    settings = run_settings(
        name,
        ScaleConfig(updates=50, prompts_per_step=2, checkpoint_every=100),
        model=ModelConfig(policy=start),
        preference_file=tmp_path / "preference.safetensors",
        seed=3,
        out=tmp_path / name,
    )
    preset = load_config(RECIPES[name].preset)
    assert settings.model.policy == start  # which the learner holds as KL reference
    assert (
        settings.update.decay_steps
        == settings.iterations
        == updates_of(name, ScaleConfig(updates=50))
    )
    assert settings.checkpoint_every <= settings.iterations
    assert (settings.rollout.prompts_per_step, settings.rollout.prompts_per_chunk) == (2, 2)
    assert settings.rollout.samples_per_prompt == preset.rollout.samples_per_prompt
    assert settings.reward.weights == preset.reward.weights
    has_file = settings.reward.preference_file is not None
    assert has_file == ("preference" in settings.reward.weights)


def test_scales_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scale.updates must be 1 or more"):
        ScaleConfig(updates=0)
    with pytest.raises(ValueError, match=r"scale.shares names 'UR'"):
        ScaleConfig(shares={"UR": 1.0})
    with pytest.raises(ValueError, match=r"scale.shares.U must be above 0, got 0"):
        ScaleConfig(shares={"U": 0})
