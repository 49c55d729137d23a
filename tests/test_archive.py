"""The archive of rollouts: bit for bit what the learner saw, and training on it repeats the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from musicrl.archive import Archive
from musicrl.config import TrainConfig
from musicrl.solo import solo
from musicrl.types import Experience, Prompt, RewardBatch, Rollouts

Configure = Callable[..., TrainConfig]
RANDOM = np.random.default_rng(0)


def experience(samples: int, *, is_cut: bool) -> Experience:
    """Random in every bit, with a failed reward."""
    kept = RANDOM.integers(0, 256, (samples, 3, 2, 2), np.uint8) if is_cut else None
    rollouts = Rollouts(
        prompts=tuple(
            Prompt(id=str(i), text=f"a “tune” {i}", source="test", attributes=(("mood", "calm"),))
            for i in range(samples)
        ),
        conditions=RANDOM.integers(-5, 5, (samples, 4), np.int16),
        tokens=RANDOM.integers(0, 99, (samples, 3, 2), np.int16),
        logprobs=-RANDOM.random((samples, 3, 2), np.float32),
        group=np.arange(samples, dtype=np.int32),
        seeds=RANDOM.integers(0, 2**64, samples, np.uint64),
        version=np.full(samples, 7, np.int64),
        kept=kept,
    )
    valid = np.arange(samples) > 0
    terms = {"text": np.where(valid, RANDOM.random(samples, np.float32), np.float32(np.nan))}
    total = np.where(valid, terms["text"], np.float32(0))
    return Experience(rollouts=rollouts, rewards=RewardBatch(total=total, terms=terms, valid=valid))


def assert_equal(found: Any, expected: Any) -> None:
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        elif isinstance(theirs, dict):
            assert ours.keys() == theirs.keys()
            for name in theirs:
                np.testing.assert_array_equal(ours[name], theirs[name])
        else:
            assert ours == theirs


@pytest.mark.parametrize("is_cut", [False, True])
def test_what_is_read_is_what_was_written(is_cut: bool, tmp_path: Path) -> None:
    written = [experience(5, is_cut=is_cut), experience(2, is_cut=is_cut)]
    archive = Archive(tmp_path / "rollouts")
    archive.write(12, written)
    read = archive.read(12)
    assert len(read) == 2
    for found, expected in zip(read, written, strict=True):
        assert_equal(found.rollouts, expected.rollouts)
        assert_equal(found.rewards, expected.rewards)
    assert archive.steps() == [12]


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    path = archive.write(0, [experience(5, is_cut=False)])
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"step_000000\.parquet is not a readable Parquet file"):
        archive.read(0)
    whole[whole.index(b"\x28\xb5\x2f\xfd") + 12] ^= 1  # in the first compressed page
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"step_000000\.parquet is not a readable Parquet file"):
        archive.read(0)
    pq.write_table(pa.table({"tokens": [1]}), path)
    with pytest.raises(ValueError, match=r"step_000000\.parquet does not hold rollouts"):
        archive.read(0)
    with pytest.raises(FileNotFoundError, match="no rollouts of training step 3"):
        archive.read(3)
    with pytest.raises(FileNotFoundError, match="training step 1: steps 0 to 2 are to be replayed"):
        archive.check(0, 3)


def test_training_on_the_archive_of_a_run_repeats_it(configure: Configure, tmp_path: Path) -> None:
    config = configure(iterations=3, archive_rollouts=True)
    solo(config)
    assert Archive(config.out / "rollouts").steps() == [0, 1, 2]
    again = replace(
        config, out=tmp_path / "again", replay_from=config.out / "rollouts", archive_rollouts=False
    )
    solo(again)
    ends = [
        load_file(out / "checkpoints" / "step_000003" / "learner.safetensors")
        for out in (config.out, again.out)
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[0])
    assert not (again.out / "rollouts").exists()
    with pytest.raises(FileNotFoundError, match="training step 3"):
        solo(replace(again, out=tmp_path / "longer", iterations=4))
    assert not (tmp_path / "longer").exists()
