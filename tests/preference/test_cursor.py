"""Exports part by part, and a preference model that learns from what is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.cli import EXIT_FAULT, main
from musicrl.policies.preference import PreferenceModel
from musicrl.preference.cursor import Cursor, Part
from musicrl.preference.dataset import read_comparisons, write_comparisons
from musicrl.preference.store import Store
from musicrl.world import World
from tests.preference.planted import planted
from tests.preference.playable import Clock
from tests.preference.test_export import answer


def export(tmp_path: Path, *flags: str, database: str = "preferences.db") -> int:
    cursor, file = tmp_path / "data" / "cursor.json", tmp_path / database
    return main(["prefs", "export", "--database", str(file), "--since", str(cursor), *flags])


def rows_of(tmp_path: Path) -> list[list[str]]:
    """Identities of the comparisons, part by part as the cursor names them."""
    folder = tmp_path / "data"
    files = [folder / part.file for part in Cursor.read(folder / "cursor.json").parts]
    return [[row.id for rows in read_comparisons([file]) for row in rows] for file in files]


def test_every_answer_is_exported_once(
    store: Store, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        answer(store, clock, str(number), "a", share=1.0)
    assert export(tmp_path) == 0
    first = tmp_path / "data" / "comparisons-000001.parquet"
    kept = first.read_bytes()
    assert export(tmp_path) == 0  # nothing new
    answer(store, clock, "unheard", "a", share=0.0)
    assert export(tmp_path) == 0  # nothing to keep
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name, "cursor.json"]
    answer(store, clock, "late", "b", share=1.0)

    def killed(self: Cursor, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cursor, "write", killed)
        assert export(tmp_path) == 130  # the part is there, no cursor names it
    answer(store, clock, "later", "b", share=1.0)
    assert export(tmp_path) == 0
    parts = rows_of(tmp_path)
    assert [len(part) for part in parts] == [3, 2]
    assert len({id for part in parts for id in part}) == 5
    assert first.read_bytes() == kept
    assert [part.rows for part in Cursor.read(first.with_name("cursor.json")).parts] == [3, 2]


def test_another_database_or_selection_is_refused(
    store: Store, clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Store.open(tmp_path / "other.db", clock=clock)
    other.close()
    answer(store, clock, "one", "a", share=1.0)
    assert export(tmp_path) == 0
    capsys.readouterr()
    assert export(tmp_path, database="other.db") == EXIT_FAULT
    assert "is the cursor of another database than" in capsys.readouterr().err
    assert export(tmp_path, "--undecided") == EXIT_FAULT
    assert "is of other answers: comparisons, minimum_share 0.5, " in capsys.readouterr().err
    (tmp_path / "data" / "cursor.json").write_text('{"format": "cursor/1"}')
    assert export(tmp_path) == EXIT_FAULT
    assert "cursor.json is not a cursor of exports" in capsys.readouterr().err


def grow(folder: Path, world: World, count: int) -> None:
    """One more part, of `count` planted comparisons, and the cursor after it."""
    path = folder / "cursor.json"
    cursor = Cursor.read(path) if path.exists() else Cursor(selection="comparisons")
    first = sum(part.rows for part in cursor.parts)
    name = f"comparisons-{len(cursor.parts) + 1:06d}.parquet"
    rows = (planted(number, world.layout) for number in range(first, first + count))
    write_comparisons(folder / name, rows)
    part = Part(file=name, rows=count, answer=f"{folder.name}-{first + count}")
    Cursor(selection="comparisons", parts=(*cursor.parts, part)).write(path)


def test_a_model_goes_on_with_what_is_new(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, data = World.load(tiny_world), tmp_path / "data"
    flags = f"--weights {tiny_world} --selection.heldout 0.2 --training.steps 20"

    def fit(out: str, *more: str, data: Path = data) -> int:
        words = f"fit-reward --cursor {data / 'cursor.json'} --out {tmp_path / out} {flags}"
        return main([*words.split(), *more])

    grow(data, world, 300)
    assert fit("first") == 0
    assert "300 new comparisons in 1 parts after 0" in capsys.readouterr().out
    start = tmp_path / "first" / "preference.safetensors"
    assert fit("again", "--start", str(start)) == EXIT_FAULT
    assert "nothing new: " in capsys.readouterr().err
    grow(data, world, 200)
    grow(data, world, 100)
    report = tmp_path / "fit.json"
    assert fit("second", "--start", str(start), "--json", str(report)) == 0
    assert "300 new comparisons in 2 parts after 1" in capsys.readouterr().out
    facts = json.loads(report.read_text())
    assert facts["comparisons learned from"] + facts["comparisons held out"] == 300
    assert facts["newest"] == "2024-02-06T00:09:59+00:00"  # of number 599
    made = PreferenceModel.from_file(tmp_path / "second" / "preference.safetensors")[1]
    assert (made["parts of the cursor"], made["last answer"]) == (3, "data-600")

    foreign = tmp_path / "foreign"
    for _ in range(2):
        grow(foreign, world, 60)
    assert fit("third", "--start", str(start), data=foreign) == EXIT_FAULT
    assert "learned from 1 parts that are not those of this cursor" in capsys.readouterr().err
    shutil.rmtree(foreign)
    assert fit("third", data=foreign) == EXIT_FAULT
    assert "no cursor at " in capsys.readouterr().err


def test_a_listener_with_too_few_choices_is_refused_with_the_count(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grow(tmp_path / "data", World.load(tiny_world), 60)
    words = f"fit-reward --cursor {tmp_path / 'data' / 'cursor.json'} --weights {tiny_world}"
    flags = f"--out {tmp_path / 'out'} --selection.listener rater-1"
    assert main([*words.split(), *flags.split()]) == EXIT_FAULT
    error = capsys.readouterr().err
    assert "too few comparisons: " in error
    assert "not used: 30 of another listener" in error
