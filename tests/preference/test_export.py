from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import EXIT_FAULT, main
from musicrl.preference.dataset import read_comparisons, read_ratings
from musicrl.preference.store import Store
from musicrl.types import Choice, Comparison
from tests.preference.playable import Clock, playable


def answer(
    store: Store, clock: Clock, request: str, choice: Choice, *, share: float, rater: str = "ann"
) -> None:
    """Serve clips 1 and 0 of prompt 0, hear that share of both, and choose."""
    offer = store.serve(
        rater=rater,
        request=request,
        prompt=playable(0, 0).prompt,
        clip_a="clip-0-1",
        clip_b="clip-0-0",
    )
    for side, clip in offer.clips.items():
        if share:
            clock.pass_by(clip.seconds)
            event, ended = f"{request}-{side}", share * clip.seconds
            store.play(
                rater=rater, token=offer.token, event=event, side=side, started=0, ended=ended
            )
    store.choose(rater=rater, token=offer.token, choice=choice)


def exported(tmp_path: Path, *flags: str) -> list[Comparison]:
    out = tmp_path / "out.parquet"
    database = str(tmp_path / "preferences.db")
    assert main(["prefs", "export", "--database", database, "--out", str(out), *flags]) == 0
    return [row for batch in read_comparisons([out]) for row in batch]


def test_an_export_is_what_was_answered(store: Store, clock: Clock, tmp_path: Path) -> None:
    for number in range(30):
        answer(store, clock, str(number), "a" if number % 3 else "b", share=0.75)
    rows = exported(tmp_path)
    assert [row.choice for row in rows] == ["a" if n % 3 else "b" for n in range(30)]
    for row in rows:
        assert np.array_equal(row.clip_a.tokens, playable(0, 1).clip.tokens)
        assert np.array_equal(row.clip_b.tokens, playable(0, 0).clip.tokens)
        assert (row.clip_a.policy, row.clip_b.policy) == ("policy-1@0f", "policy-0@0f")
        assert (row.heard_a, row.heard_b, row.simulated) == (0.75, 0.75, False)
        assert row.prompt.text == "tune number 0"
    assert rows[0].time.timestamp() == 1004.0  # the clock begins at 1000, two clips of 2 s
    assert len({row.id for row in rows}) == 30


def test_what_was_not_heard_or_not_decided_is_left_out(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    answer(store, clock, "heard", "a", share=0.6)
    answer(store, clock, "unheard", "a", share=0.0)
    answer(store, clock, "half", "b", share=0.4)
    answer(store, clock, "undecided", "none", share=1.0)
    assert [row.choice for row in exported(tmp_path)] == ["a"]
    assert [row.choice for row in exported(tmp_path, "--undecided")] == ["a", "none"]
    assert [row.choice for row in exported(tmp_path, "--minimum-share", "0.4")] == ["a", "b"]


def test_raters_leave_under_another_name(store: Store, clock: Clock, tmp_path: Path) -> None:
    for number, rater in enumerate(["ann", "bob", "ann"]):
        answer(store, clock, str(number), "a", share=1.0, rater=rater)
    raters = [row.rater for row in exported(tmp_path)]
    assert raters[0] == raters[2] != raters[1]
    assert all(name.startswith("rater-") and "ann" not in name for name in raters)


def test_ratings_are_exported(store: Store, clock: Clock, tmp_path: Path) -> None:
    prompt = playable(1, 0).prompt
    offer = store.serve(rater="ann", request="r", prompt=prompt, clip_a="clip-1-3")
    clock.pass_by(2.0)
    store.play(rater="ann", token=offer.token, event="e", side="a", started=0, ended=2)
    store.rate(rater="ann", token=offer.token, score=5)
    out = tmp_path / "marks.parquet"
    flags = ["--database", str(tmp_path / "preferences.db"), "--out", str(out)]
    assert main(["prefs", "export", "--what", "ratings", *flags]) == 0
    ((mark,),) = read_ratings([out])
    assert (mark.score, mark.heard, mark.clip.id) == (5, 1.0, "clip-1-3")
    assert np.array_equal(mark.clip.tokens, playable(1, 3).clip.tokens)


def test_validate_counts(
    store: Store, clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, choice in enumerate(("a", "a", "b", "none")):
        answer(store, clock, str(number), choice, share=1.0)  # type: ignore[arg-type]
    exported(tmp_path, "--undecided")
    out, bad, report = (tmp_path / name for name in ("out.parquet", "bad.parquet", "v.json"))
    bad.write_bytes(out.read_bytes()[:-9])
    assert main(["prefs", "validate", str(out), str(bad)]) == EXIT_FAULT
    assert f"{bad} is not a whole Parquet file" in capsys.readouterr().err
    flags = ["--skip-bad", "--json", str(report)]
    assert main(["prefs", "validate", str(out), str(bad), str(out), *flags]) == 0
    figures = json.loads(report.read_text())
    assert list(figures["skipped"]) == [str(bad)]
    assert figures["comparisons"] == 8
    assert figures["identifiers that occur again"] == 4
    assert figures["without a trophy"] == 2
    assert figures["the first clip won, share"] == pytest.approx(2 / 3)
    assert f"skipped: {bad}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["exprot"], "unknown job 'exprot' (nearest: export)"),
        (["export", "--database", "no.db"], "no database at no.db"),
        (["export", "a.parquet"], "musicrl prefs export takes no files, got a.parquet"),
        (["export", "--minimum-share", "2"], "command line: minimum_share must be 0 to 1, got 2.0"),
        (["validate"], "prefs validate needs files, as in: musicrl prefs validate a.parquet"),
        (["validate", "no.parquet"], "no file of preferences at no.parquet"),
    ],
)
def test_one_sentence(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefs", *args]) == EXIT_FAULT
    assert capsys.readouterr().err == f"musicrl: {sentence}\n"
