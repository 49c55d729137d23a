"""Win rates of policies from files of ratings, counted by hand."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from musicrl.preference.dataset import write_ratings
from musicrl.preference.winrate import WinRateConfig, compare_policies
from musicrl.types import Prompt, Rating, TokenClip


def rating(number: int, rater: str, prompt: str, policy: str, score: int) -> Rating:
    clip = TokenClip(id=f"clip{number}", tokens=np.zeros((2, 3), np.int16), policy=policy)
    return Rating(
        id=str(number),
        prompt=Prompt(id=prompt, text=prompt),
        clip=clip,
        score=score,
        heard=1.0,
        rater=rater,
        simulated=rater.startswith("simulated-"),
        time=datetime(2026, 1, 1, tzinfo=UTC),
    )


def write(path: Path, rows: list[tuple[str, str, str, int]]) -> Path:
    write_ratings(path, [rating(i, *row) for i, row in enumerate(rows)])
    return path


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_pairs_of_marks_by_hand(tmp_path: Path) -> None:
    rows = [
        ("ann", "a reel", "new@1", 4),
        ("ann", "a reel", "old@0", 2),  # won
        ("ann", "a jig", "new@1", 3),
        ("ann", "a jig", "old@0", 3),  # tied
        ("bob", "a reel", "new@1", 1),
        ("bob", "a reel", "old@0", 5),
        ("bob", "a reel", "old@0", 3),  # lost: 1 against 4 in the mean
        ("bob", "a jig", "new@1", 5),  # without its counterpart
        ("simulated-0-1", "a reel", "new@1", 5),
        ("simulated-0-1", "a reel", "old@0", 1),  # never counted with people
    ]
    files = (write(tmp_path / "simulated-and-people.parquet", rows),)
    report = compare_policies(WinRateConfig(files=files, json=tmp_path / "w.json"), quiet())
    assert report == json.loads((tmp_path / "w.json").read_text())
    pairs = json.loads((tmp_path / "w.json").read_text())["pairs"]
    assert [(p["a"], p["b"], p["rater"]) for p in pairs] == [
        ("new@1", "old@0", "people"),
        ("new@1", "old@0", "simulated raters"),
    ]
    counts = [(p["wins"], p["ties"], p["losses"], p["win_rate"]) for p in pairs]
    assert counts == [(1, 1, 1, 0.5), (1, 0, 0, 1.0)]


def test_opinions_by_hand(tmp_path: Path) -> None:
    rows = [("ann", "a reel", "new@1", 4), ("ann", "a reel", "old@0", 2), ("bob", "x", "new@1", 1)]
    config = WinRateConfig(files=(write(tmp_path / "r.parquet", rows),), json=tmp_path / "w.json")
    compare_policies(config, quiet())
    mos = json.loads((tmp_path / "w.json").read_text())["mos"]["people"]
    assert (mos["new@1"]["mean"], mos["new@1"]["count"]) == (2.5, 2)
    assert mos["old@0"]["mean"] == 2


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    rows = [("ann", "a reel", "new@1", 4), ("bob", "a reel", "old@0", 2)]
    with pytest.raises(ValueError, match="two policies"):
        compare_policies(WinRateConfig(files=(write(tmp_path / "r.parquet", rows),)), quiet())
