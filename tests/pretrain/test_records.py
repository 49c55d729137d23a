"""When a stage is made again, and when it is continued: stages of files of text."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from musicrl.pretrain.pipeline import run_stage, run_stages
from musicrl.pretrain.record import Records
from musicrl.pretrain.stage import Stage


def test_what_changes_is_made_again_with_what_reads_it(soundfont: Path, tmp_path: Path) -> None:
    """Stages of files of text: the second reads the first, the third nothing."""
    out, ran = tmp_path, list[str]()

    def stage(name: str, *, reads: tuple[str, ...] = (), size: int = 1) -> Stage:
        def run() -> dict[str, float]:
            ran.append(name)
            (out / name).write_text("x" * size)
            return {"size": size, "unknown": float("nan")}

        return Stage(
            name=name, settings={"size": size}, run=run, reads=reads, writes=(name,), minutes=1
        )

    def go(size: int) -> list[str]:
        ran.clear()
        records = Records(out)
        for one in (stage("a", size=size), stage("b", reads=("a",)), stage("c")):
            record = records.find(one) or run_stage(one, records)
            assert record.figures["unknown"] is None
        return list(ran)

    assert go(1) == ["a", "b", "c"]
    assert go(1) == []
    assert go(2) == ["a", "b"]
    os.utime(out / "a")
    assert go(2) == []
    (out / "a").write_text("yy")
    assert go(2) == ["a"]  # what it read is again what it was
    (out / "c").unlink()
    assert go(2) == ["c"]


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    records, checkpoint = Records(tmp_path), tmp_path / "a.resume"
    seen = []

    def stage(rate: float) -> Stage:
        def run() -> dict[str, float]:
            seen.append(checkpoint.exists())
            checkpoint.touch()
            (tmp_path / "a").touch()
            if rate < 1:
                raise KeyboardInterrupt
            return {}

        return Stage(
            name="a",
            settings={"rate": rate},
            run=run,
            writes=("a",),
            checkpoints=("*.resume",),
            minutes=1,
        )

    for rate in (0.1, 0.1, 0.2):
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage(rate), records)
    told = StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_stages([stage(0.2)], tmp_path, Console(file=told, width=200))
    assert told.getvalue().splitlines() == [
        "stage 1 of 1, a: was interrupted, starts again",
        "stage 1 of 1, a: interrupted; given the same command again it starts again",
    ]
    begun = records.read_begun("a")
    assert begun is not None
    assert begun.attempts == 2
    assert begun.seconds > 0
    assert run_stage(stage(1.0), records).attempts == 1
    assert seen == [False, True, False, True, False]
