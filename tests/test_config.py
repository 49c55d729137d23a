from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from musicrl.config import (
    PRESETS,
    EvaluationConfig,
    RolloutConfig,
    derived_numbers,
    dump_yaml,
    find_settings,
    load_config,
    preset_names,
)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(path) == config


def test_a_changed_setting_survives_a_round_trip(tmp_path: Path) -> None:
    flags = "--seed 7 --update.learning-rate 3e-5 --model.policy p.safetensors --cluster.max_lag 1"
    config = load_config("tiny", flags.split())
    assert (config.seed, config.update.learning_rate, config.cluster.max_lag) == (7, 3e-5, 1)
    assert config.model.policy == Path("p.safetensors")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(path) == config


def test_without_arguments_the_tiny_preset_is_read() -> None:
    assert load_config() == load_config("tiny") == load_config(PRESETS / "tiny.yaml")


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("iterations: 3\nrollout: {prompts_per_step: 8}\n")
    config = load_config(path, ["--iterations", "5"])
    assert config.iterations == 5
    assert config.rollout == RolloutConfig(prompts_per_step=8)


def test_the_file_of_a_typo_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("rollout: {prompt_per_step: 8}\n")
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path)
    wanted = "unknown key 'rollout.prompt_per_step' (nearest: rollout.prompts_per_step)"
    assert str(caught.value) == f"{path}: {wanted}"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--iteration 3", "unknown option --iteration (nearest: --iterations)"),
        ("--seed x", "command line: seed is 'x', expected an integer"),
        (
            "--rollout.prompts-per-chunk 3",
            "command line: prompts_per_step 8 is not a multiple of prompts_per_chunk 3",
        ),
        ("--cluster.num-samplers 0", "command line: num_samplers must be 1 or more, got 0"),
        ("--iterations 0", "command line: iterations must be 1 or more, got 0"),
        ("--rollout.sampling.temperature 0", "command line: temperature must be above 0, got 0.0"),
        (
            "--evaluation.prompts 2",
            "command line: audio_prompts 4 of only 2 evaluation prompts",
        ),
    ],
)
def test_flags_are_refused_in_one_sentence(flags: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_config("tiny", flags.split())
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "flags",
    [
        "--algorithm.baseline group_mean --rollout.samples-per-prompt 1",
        "--algorithm.name ppo --algorithm.clip-ratio 0.2 --cluster.max-lag 0",
    ],
)
def test_contradictions_between_packages_are_refused(flags: str) -> None:
    with pytest.raises(ValueError, match=r"^command line: "):
        load_config("tiny", flags.split())


def test_an_evaluation_that_measures_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="measures nothing: audio_prompts is 0"):
        EvaluationConfig(audio_prompts=0, every=5)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^no preset 'tinny' \(nearest: tiny\)"):
        find_settings("tinny")
    assert find_settings("own/tinny") == Path("own/tinny")


def test_a_preset_may_extend_another() -> None:
    tiny, quality = load_config("tiny"), load_config("musicrl-quality")
    assert quality.reward.weights == {"text": 0.0, "quality": 1.0}
    assert replace(quality, out=tiny.out, reward=tiny.reward) == tiny


def test_what_extends_itself_or_nothing_is_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"extends: {b}\n")
    b.write_text(f"seed: 4\nextends: {a}\n")
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(a)
    assert str(caught.value) == f"{b}: extends is '{a}', expected another preset or file"
    a.write_text("extends: 3\n")
    with pytest.raises(ValueError, match="extends is 3, expected another"):
        load_config(a)
    a.write_text("extends: tinny\n")
    with pytest.raises(ValueError, match=r"no preset 'tinny' \(nearest: tiny\)"):
        load_config(a)


def test_derived_numbers_by_hand() -> None:
    config = load_config("tiny", ["--iterations", "10"])
    rollout = RolloutConfig(prompts_per_step=6, samples_per_prompt=4, prompts_per_chunk=3)
    config = replace(config, rollout=rollout, cluster=replace(config.cluster, max_lag=1))
    assert derived_numbers(config, cells_per_sample=375) == {
        "samples per step": 24,
        "tokens per step": 9000,
        "sampling tasks per step": 2,
        "samples in flight at most": 48,
        "samples of the run": 240,
    }
