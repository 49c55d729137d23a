"""Runs under guards, in one process: what stops them, what they end with, what stays the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from musicrl.config import TrainConfig
from musicrl.solo import solo

Configure = Callable[..., TrainConfig]
FEW = {"prompts": 2, "audio_prompts": 1}
UNHEARD = {"max_silence": None, "max_clipping": None, "min_pitch_variety": None}
"""The tiny world of tests makes noises that are no music to begin with."""


def scalars(config: TrainConfig, name: str) -> dict[int, float]:
    """A figure in TensorBoard, by step."""
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def learner_state(out: Path, step: int) -> dict[str, bytes]:
    tensors = load_file(out / "checkpoints" / f"step_{step:06d}" / "learner.safetensors")
    return {name: array.tobytes() for name, array in tensors.items()}


def test_a_run_is_stopped_by_its_divergence(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    guards = {"max_kl": 0.1, "window": 2, "stop": ["max_kl"]}
    config = configure(iterations=50, update={"learning_rate": 0.05}, guards=guards, evaluation=FEW)
    summary = solo(config)
    steps, alarm = summary["iterations"], summary["stopped_by"]
    assert steps < 50
    assert summary["finished"] is False
    assert (alarm["guard"], alarm["figure"], alarm["step"]) == ("max_kl", "kl/sequence", steps)
    assert alarm in summary["guards"]
    kl = scalars(config, "kl/sequence")
    assert len(kl) == steps
    assert alarm["value"] == pytest.approx(median([kl[steps - 2], kl[steps - 1]]))
    assert all(median([kl[i - 1], kl[i]]) <= 0.1 for i in range(1, steps - 1))
    assert scalars(config, "guard/max_kl") == {i: float(i == steps - 1) for i in range(steps)}
    assert summary["evaluation"]["kl"]["total"]["mean"] > 0
    assert (config.out / "audio" / "after").is_dir()
    assert learner_state(config.out, steps)
    told = capsys.readouterr().out
    assert f"stopped by guard max_kl after {steps} steps: kl/sequence is" in told
    assert told.count("guard max_kl: kl/sequence is") == 1

    again = {
        "iterations": steps + 1,
        "resume": True,
        "update": {"learning_rate": 0.05},
        "evaluation": FEW,
    }
    with pytest.raises(ValueError, match=rf"stopped by guards\.max_kl after step {steps}: it goes"):
        solo(configure(**again, guards=guards))
    found = solo(configure(**again, guards={**guards, "stop": []}))
    assert found["iterations"] == steps + 1
    assert found["stopped_by"] is None


def test_a_run_ends_with_its_best_policy(configure: Configure) -> None:
    guards = {"evaluate_every": 2, "restore_best": True, "judge_fall": None, "heldout_fall": None}
    config = configure(
        iterations=7,
        checkpoint_every=1,
        evaluation=FEW,
        update={"learning_rate": 0.05},
        guards={**UNHEARD, **guards},
    )
    summary = solo(config)
    rewards = scalars(config, "evaluation/reward")
    assert sorted(rewards) == [0, 2, 4, 6, 7]
    best = max(rewards, key=lambda step: rewards[step])
    assert summary["iterations"] == 7
    assert summary["restored"]["step"] == best
    assert summary["restored"]["reward"] == pytest.approx(rewards[best])
    assert summary["evaluation"]["after"]["reward"]["mean"] == summary["restored"]["reward"]
    folder = config.out / "checkpoints"
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"best.json", f"step_{best:06d}", "step_000006", "step_000007"}
    assert json.loads((folder / "best.json").read_text()) == summary["restored"]
    exported = (config.out / "policy.safetensors").read_bytes()
    assert exported == (folder / f"step_{best:06d}" / "policy.safetensors").read_bytes()


def test_guards_that_stop_nothing_leave_the_run_as_it_is(
    configure: Configure, tmp_path: Path
) -> None:
    off = {"max_kl": None, "min_entropy": None, "max_skipped": None}
    off |= {**UNHEARD, "judge_fall": None, "heldout_fall": None}
    plain = configure(out=str(tmp_path / "plain"), guards=off, evaluation=FEW)
    watched = configure(
        out=str(tmp_path / "watched"),
        evaluation=FEW,
        guards={"evaluate_every": 1, "stop": ["max_kl", "max_skipped"], "max_kl": 1e6},
    )
    expected, found = solo(plain), solo(watched)
    assert found["stopped_by"] is None
    assert learner_state(watched.out, 3) == learner_state(plain.out, 3)
    assert found["evaluation"] == expected["evaluation"]
