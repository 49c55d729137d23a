from __future__ import annotations

import pytest

from musicrl.pretrain import progress
from musicrl.pretrain.progress import line, track


def test_a_line_says_what_is_left() -> None:
    """30 of 120 in 60 s: two seconds each, 90 to go."""
    assert line("training a", 30, 120, 60.0) == "training a: 30 of 120, about 180 s left"
    assert line("parsing", 30, None, 60.0) == "parsing: 30"


def test_items_come_through_and_lines_are_told_between_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(track(range(3), description="a")) == [0, 1, 2]
    assert list(track(iter("xy"), description="b", total=2)) == ["x", "y"]
    assert list(track(iter("z"), description="c")) == ["z"]
    told = capsys.readouterr().out.splitlines()
    assert [text.partition(",")[0] for text in told] == [
        "a: 1 of 3",
        "a: 2 of 3",
        "a: 3 of 3",
        "b: 1 of 2",
        "b: 2 of 2",
        "c: 1",
    ]
    monkeypatch.undo()
    list(track(range(3), description="a"))
    assert capsys.readouterr().out == ""
