"""What the report of a world says of the limits that are asked of building one."""

from __future__ import annotations

from pathlib import Path

import pytest

from musicrl.pretrain.pipeline import Outcome
from musicrl.pretrain.record import Record
from musicrl.pretrain.report import LONGEST, MEGABYTES, MINUTES, report_of, to_markdown
from musicrl.pretrain.stage import Stage


def outcome(name: str, minutes: float) -> Outcome:
    stage = Stage(name=name, settings={}, run=dict, writes=(), minutes=1)
    record = Record(
        settings="", read={}, seconds=60 * minutes, attempts=1, wrote={}, figures={}, finished=""
    )
    return Outcome(stage=stage, record=record, is_new=True)


def test_a_stage_that_takes_too_long_is_said_though_all_together_do_not(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "policy.safetensors").write_bytes(bytes(2_500_000))
    (tmp_path / "weights" / "tokens-train.safetensors").write_bytes(bytes(40_000_000))
    report = report_of([outcome("codec", 20.0), outcome("policy", 100.5)], tmp_path, {})
    found = {name: (row["found"], row["holds"]) for name, row in report["asked"].items()}
    assert found == {
        MINUTES: (pytest.approx(120.5), True),
        LONGEST: (pytest.approx(100.5), False),
        MEGABYTES: (pytest.approx(2.5), True),
    }
    told = to_markdown(report)
    assert "| minutes of the longest stage | 100 | 100.50 | TOO MUCH |" in told
    assert "| MB of weights | 30 | 2.50 | holds |" in told
