from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import EXIT_FAULT, main
from musicrl.preference.dataset import read_comparisons, write_comparisons
from musicrl.types import Comparison, Prompt
from tests.preference.playable import compared

GROUP: dict[str, Callable[[Comparison], str]] = {
    "prompt": lambda row: row.prompt.text,
    "rater": lambda row: row.rater,
    "comparison": lambda row: row.id,
}


def rows(count: int, *, first: int = 0) -> list[Comparison]:
    """Comparisons of 40 prompts by 60 raters."""
    return [
        replace(
            compared(n),
            prompt=Prompt(id=f"p{n % 40}", text=f"tune {n % 40}"),
            rater=f"rater-{n % 60}",
        )
        for n in range(first, first + count)
    ]


def ids(path: Path) -> list[str]:
    return [row.id for batch in read_comparisons([path]) for row in batch]


def test_a_merge_holds_each_comparison_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, out = (tmp_path / f"{name}.parquet" for name in ("one", "two", "out"))
    write_comparisons(one, rows(30))
    write_comparisons(two, rows(30, first=20))
    assert main(["prefs", "merge", str(one), str(two), "--out", str(out)]) == 0
    assert ids(out) == [f"pair-{n}" for n in range(50)]
    assert capsys.readouterr().out == (
        f"50 comparisons in {out}; 10 came again and were left out\n"
    )


def test_a_merge_with_simulated_raters_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, simulated = tmp_path / "real.parquet", tmp_path / "simulated.parquet"
    write_comparisons(real, rows(3))
    made_up = [replace(row, simulated=True, rater="simulated-1") for row in rows(3, first=5)]
    write_comparisons(simulated, made_up)
    out = tmp_path / "all.parquet"
    assert main(["prefs", "merge", str(real), str(simulated), "--out", str(out)]) == EXIT_FAULT
    assert "its name must contain 'simulated'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("by", ["prompt", "rater", "comparison"])
def test_a_split_keeps_groups_whole(by: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_comparisons(path, rows(4000))
    assert main(["prefs", "split", str(path), "--by", by, "--heldout", "0.3"]) == 0
    sides = [tmp_path / f"pairs-{side}.parquet" for side in ("train", "heldout")]
    train, heldout = ([row for b in read_comparisons([side]) for row in b] for side in sides)
    assert sorted([*ids(sides[0]), *ids(sides[1])]) == sorted(f"pair-{n}" for n in range(4000))
    groups = [set(map(GROUP[by], side)) for side in (train, heldout)]
    assert not groups[0] & groups[1]
    total = len(groups[0] | groups[1])
    deviation = np.sqrt(total * 0.3 * 0.7)
    assert abs(len(groups[1]) - 0.3 * total) < 3 * deviation


def test_a_split_is_decided_by_its_seed_and_not_by_the_order(tmp_path: Path) -> None:
    def heldout(name: str, order: Iterable[Comparison], seed: int) -> set[str]:
        path = tmp_path / f"{name}.parquet"
        write_comparisons(path, order)
        flags = ["--seed", str(seed), "--heldout", "0.5"]
        assert main(["prefs", "split", str(path), *flags]) == 0
        return set(ids(tmp_path / f"{name}-heldout.parquet"))

    first = heldout("first", rows(80), 0)
    assert heldout("again", reversed(rows(80)), 0) == first
    assert heldout("other", rows(80), 1) != first


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["merge"], "prefs merge needs files, as in: musicrl prefs merge a.parquet"),
        (["split"], "prefs split needs files, as in: musicrl prefs split a.parquet"),
        (["split", "a.parquet", "--heldout", "1"], "heldout must be between 0 and 1, got 1.0"),
        (["split", "a.parquet", "--by", "clip"], "expected one of prompt, rater, comparison"),
        (["split", "a.parquet"], "no file of preferences at a.parquet"),
    ],
)
def test_one_sentence(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefs", *args]) == EXIT_FAULT
    assert sentence in capsys.readouterr().err
