"""The whole algorithm in one process: it resumes, stops, survives bad rewards and stays on policy."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from musicrl.config import TrainConfig, load_config
from musicrl.journal import Iteration, Journal
from musicrl.policies.musiclm import MusicLM
from musicrl.solo import solo

Configure = Callable[..., TrainConfig]

FLAKY = '''
"""A reward that cannot score the first clip of a batch, and fails on every third batch."""

import numpy as np


class Flaky:
    name = "flaky"

    def __init__(self, world):
        self.calls = 0

    def __call__(self, prompts, clips):
        self.calls += 1
        if self.calls % 3 == 0:
            raise RuntimeError("out of tune")
        return np.array([np.nan] + [0.5] * (len(prompts) - 1), np.float32)
'''


def learner_state(out: Path, step: int) -> dict[str, bytes]:
    """Every tensor of the learner at a checkpoint: policy, value and both optimizers."""
    tensors = load_file(out / "checkpoints" / f"step_{step:06d}" / "learner.safetensors")
    return {name: array.tobytes() for name, array in tensors.items()}


@pytest.fixture
def iterations(monkeypatch: pytest.MonkeyPatch) -> list[Iteration]:
    """What the journals of the test record."""
    recorded: list[Iteration] = []
    record = Journal.record

    def remember(journal: Journal, iteration: Iteration) -> None:
        recorded.append(iteration)
        record(journal, iteration)

    monkeypatch.setattr(Journal, "record", remember)
    return recorded


def test_a_run_leaves_its_summary_audio_events_and_checkpoints(configure: Configure) -> None:
    config = configure(iterations=3, checkpoint_every=1, evaluation={"every": 2})
    summary = solo(config)
    assert summary == json.loads((config.out / "summary.json").read_text())
    assert summary["iterations"] == 3
    assert summary["finished"] is True
    assert summary["lag_histogram"] == {"0": 24}
    for part in ("reward", "mismatched", "judge/embedding", "judge/tagger"):
        figures = summary["evaluation"]["difference"][part]
        assert math.isfinite(figures["mean"])
        assert figures["standard_error"] > 0
    streams = {"semantic", "coarse1.0", "coarse2.0", "coarse3.0", "coarse4.0", "total"}
    assert summary["evaluation"]["kl"].keys() == streams
    assert summary["evaluation"]["kl"]["total"]["mean"] > 0
    assert {"sample", "decode", "score", "learn", "publish", "wait"} == summary["seconds"][
        "phases"
    ].keys()
    assert {"python", "torch", "ray", "numpy", "musicrl"} == summary["versions"].keys()
    assert [p.name for p in sorted((config.out / "checkpoints").iterdir())] == [
        "step_000002",
        "step_000003",
    ]
    assert load_config(config.out / "config.yaml") == config


def test_the_audio_of_the_fixed_prompts_is_kept(configure: Configure) -> None:
    config = configure(iterations=2, evaluation={"every": 2})
    solo(config)
    names = ["00_a_slow_tune_on_the_piano.wav", "01_a_fast_tune_on_the_piano.wav"]
    for folder in ("before", "step_000002", "after"):
        files = sorted((config.out / "audio" / folder).iterdir())
        assert [file.name for file in files] == names
        assert soundfile.info(files[0]).duration == pytest.approx(0.4)
    step, after = (config.out / "audio" / f / names[0] for f in ("step_000002", "after"))
    assert step.read_bytes() == after.read_bytes()


def test_tensorboard_shows_figures_audio_and_pictures(configure: Configure) -> None:
    config = configure(iterations=3)
    solo(config)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert [e.step for e in events.Scalars("reward/mean")] == [0, 1, 2]
    assert {"kl/stream/semantic", "seconds/sample", "staleness/max_lag"} <= set(tags["scalars"])
    assert "audio/00 a slow tune on the piano" in tags["audio"]
    assert "spectrogram/01 a fast tune on the piano" in tags["images"]
    assert "staleness/lag" in tags["histograms"]


def test_the_sampler_gets_the_weights_of_every_version(
    configure: Configure, iterations: list[Iteration]
) -> None:
    """Rollouts sampled from anything but the learner's own weights would have other ratios."""
    solo(configure(iterations=4, update={"learning_rate": 0.05}))
    assert all(i.report.figures["ratio/max_deviation"] < 1e-5 for i in iterations)
    assert iterations[-1].report.figures["kl/sequence"] > 0.1


def test_with_learning_rate_0_the_importance_ratios_stay_1(
    configure: Configure, iterations: list[Iteration]
) -> None:
    config = configure(iterations=20, update={"learning_rate": 0.0})
    solo(config)
    assert len(iterations) == 20
    assert max(i.report.figures["ratio/max_deviation"] for i in iterations) < 1e-5
    policy = MusicLM.from_file(config.out / "checkpoints/step_000020/policy.safetensors")
    assert config.model.weights is not None
    base = MusicLM.from_file(config.model.weights / "policy.safetensors")
    for name, tensor in base.state_dict().items():
        assert policy.state_dict()[name].equal(tensor), name


def test_resuming_gives_what_an_uninterrupted_run_gives(
    configure: Configure, tmp_path: Path
) -> None:
    whole = configure(out=str(tmp_path / "whole"), iterations=4)
    part = configure(out=str(tmp_path / "part"), iterations=2)
    rest = configure(out=str(tmp_path / "part"), iterations=4, resume=True)
    expected, _, found = solo(whole), solo(part), solo(rest)
    assert learner_state(whole.out, 4) == learner_state(rest.out, 4)
    assert found["evaluation"] == expected["evaluation"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint_to_resume_from(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    record, handler = Journal.record, signal.getsignal(number)

    def interrupt(journal: Journal, iteration: Iteration) -> None:
        record(journal, iteration)
        if iteration.report.step == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(Journal, "record", interrupt)
    config = configure(iterations=50)
    summary = solo(config)
    assert summary["iterations"] == 2
    assert summary["finished"] is False
    assert summary["evaluation"] is None
    monkeypatch.setattr(Journal, "record", record)
    assert solo(configure(iterations=3, resume=True))["iterations"] == 3
    assert signal.getsignal(number) is handler


def test_a_failing_reward_is_masked_and_counted(
    configure: Configure,
    iterations: list[Iteration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "flaky_reward.py").write_text(FLAKY)
    monkeypatch.syspath_prepend(tmp_path)
    rewards = {"weights": {"flaky_reward:Flaky": 1.0, "text": 0.0}}
    summary = solo(configure(iterations=3, reward=rewards))
    # Four calls before training (2 batches, right and wrong captions), then two a step of four
    # clips each: one clip is lost in a call, and all four in every third.
    figures = [i.report.figures for i in iterations]
    assert [f["update/invalid_samples"] for f in figures] == failures_of(calls=4)
    assert summary["failed_rewards"] == {"flaky_reward:Flaky": sum(failures_of(4)), "text": 0}
    for f in figures:
        assert f["reward/mean"] == 0.5
        assert all(math.isfinite(value) for value in f.values())


def failures_of(calls: int) -> list[int]:
    """Clips lost in each of three steps of two batches of four, after so many calls."""
    lost = [4 if (calls + i) % 3 == 0 else 1 for i in range(1, 7)]
    return [lost[0] + lost[1], lost[2] + lost[3], lost[4] + lost[5]]


def refusal(call: Callable[[], Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_a_folder_that_holds_a_run_is_not_overwritten(configure: Configure) -> None:
    config = configure(iterations=1)
    solo(config)
    sentence = refusal(lambda: solo(config), ValueError)
    assert "already holds a run: continue it with --resume" in sentence


def test_resuming_needs_a_whole_checkpoint_of_the_same_run(configure: Configure) -> None:
    resumed = configure(iterations=2, resume=True)
    assert "no checkpoint in" in refusal(lambda: solo(resumed), FileNotFoundError)
    solo(configure(iterations=1))
    other = configure(iterations=2, resume=True, algorithm={"baseline": "none"})
    sentence = refusal(lambda: solo(other), ValueError)
    assert "cannot resume from" in sentence
    assert "another algorithm.baseline" in sentence
    checkpoint = resumed.out / "checkpoints" / "step_000001"
    tensors = checkpoint / "learner.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    sentence = refusal(lambda: solo(resumed), ValueError)
    assert sentence.endswith("step_000001 has a truncated learner.safetensors")


def test_a_world_with_a_file_missing_is_refused_by_name(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(model={"weights": str(tmp_path)})
    assert "prompts.parquet" in refusal(lambda: solo(config), FileNotFoundError)


def test_more_evaluation_prompts_than_there_are_is_refused(configure: Configure) -> None:
    config = configure(evaluation={"prompts": 13})
    assert "holds only 12 held-out prompts" in refusal(lambda: solo(config), ValueError)
