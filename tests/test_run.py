"""The folder of a run: checkpoints whole or not at all, the newest two kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musicrl.checkpoint_folder import checkpoint_fault
from musicrl.run import Best, Run, is_due, versions


def save(run: Run, step: int) -> Path:
    return run.save_checkpoint(
        step, {"learner": {"version": step}}, lambda folder: fill(folder, f"weights {step}")
    )


def fill(folder: Path, text: str) -> None:
    (folder / "learner.safetensors").write_text(text)


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (5, 10, 15):
        save(run, step)
    assert [path.name for path in run.checkpoint_folders()] == ["step_000010", "step_000015"]
    assert run.newest_checkpoint().name == "step_000015"
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_the_best_checkpoint_outlives_newer_ones_until_there_is_a_better(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (5, 10, 15, 20):
        save(run, step)
        if step == 5:
            run.keep_best(Best(step=5, reward=0.5))
    assert names(run) == ["step_000005", "step_000015", "step_000020"]
    assert Run(tmp_path).find_best() == Best(step=5, reward=0.5)
    assert run.newest_checkpoint().name == "step_000020"
    run.keep_best(Best(step=20, reward=0.75))
    assert names(run) == ["step_000015", "step_000020"]
    (run.newest_checkpoint() / "learner.safetensors").unlink()
    assert run.find_best() is None


def names(run: Run) -> list[str]:
    return [path.name for path in run.checkpoint_folders()]


def test_an_interrupted_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    run = Run(tmp_path)
    save(run, 5)

    def fail(folder: Path) -> None:
        fill(folder, "half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint(10, {}, fail)
    assert run.newest_checkpoint().name == "step_000005"
    save(run, 10)
    assert run.newest_checkpoint().name == "step_000010"
    assert (run.newest_checkpoint() / "learner.safetensors").read_text() == "weights 10"


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    older, newest = save(run, 5), save(run, 10)
    (newest / "learner.safetensors").write_text("short")
    assert checkpoint_fault(newest) == "has a truncated learner.safetensors"
    assert run.newest_checkpoint() == older
    (newest / "learner.safetensors").write_text("weights 11")
    assert run.newest_checkpoint() == older
    (newest / "learner.safetensors").unlink()
    assert checkpoint_fault(newest) == "lacks learner.safetensors"
    (newest / "state.json").write_text("{")
    assert checkpoint_fault(newest) == "has an unreadable state.json"
    (newest / "state.json").unlink()
    assert checkpoint_fault(newest) == "lacks state.json"
    (older / "state.json").unlink()
    with pytest.raises(
        ValueError, match=r"no usable checkpoint to resume from: .*step_000010 lacks"
    ):
        run.newest_checkpoint()


def test_a_step_saved_twice_keeps_the_first(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = save(run, 5)
    run.save_checkpoint(5, {}, lambda folder: fill(folder, "again"))
    assert (first / "learner.safetensors").read_text() == "weights 5"


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (save(run, 5) / "state.json").unlink()
    assert checkpoint_fault(save(run, 5)) is None


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_summary({"reward": 0.5})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"reward": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_summary({"reward": float("nan")})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"reward": 0.5}


def test_when_things_are_due() -> None:
    assert [step for step in range(1, 7) if is_due(step, 3)] == [3, 6]
    assert not any(is_due(step, 0) for step in range(10))


def test_versions_name_everything_that_decides_the_numbers() -> None:
    assert versions().keys() == {"musicrl", "python", "torch", "ray", "numpy"}
    assert all(part[0].isdigit() for part in versions().values())
