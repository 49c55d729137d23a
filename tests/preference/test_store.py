from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Table, event, func, select

from musicrl.preference.database import READS
from musicrl.preference.refusal import AlreadyAnswered, Impossible, NotHeard, UnknownServing
from musicrl.preference.serving import Serving
from musicrl.preference.store import Store
from musicrl.preference.tables import choices, clips, plays, servings
from musicrl.types import Choice, Prompt, Side
from tests.preference.playable import Clock, playable

ROOT = Path(__file__).parent.parent.parent
PROMPT = playable(0, 0).prompt


def serve(store: Store, rater: str = "ann", request: str = "r1") -> Serving:
    return store.serve(
        rater=rater, request=request, prompt=PROMPT, clip_a="clip-0-1", clip_b="clip-0-0"
    )


def hear(store: Store, clock: Clock, offer: Serving, side: Side, seconds: float = 2.0) -> None:
    clock.pass_by(seconds)
    store.play(
        rater="ann",
        token=offer.token,
        event=f"{side}-{clock.now}",
        side=side,
        started=0.0,
        ended=seconds,
    )


def count(store: Store, table: Table) -> int:
    with store.engine.connect().execution_options(**READS) as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def test_a_pair_is_offered_in_its_order_and_says_what_to_play(store: Store) -> None:
    offer = serve(store)
    assert offer.prompt.text == "tune number 0"
    assert [offer.clips[side].wav for side in ("a", "b")] == ["clip-0-1.wav", "clip-0-0.wav"]
    assert store.serving(rater="ann", token=offer.token) == offer


def test_a_replayed_request_gets_the_same_offer(store: Store) -> None:
    first = serve(store)
    assert serve(store) == first == store.find(rater="ann", request="r1")
    assert serve(store, request="r2").token != first.token
    assert serve(store, rater="bob").token != first.token
    assert count(store, servings) == 3


def test_nobody_answers_for_another(store: Store) -> None:
    offer = serve(store)
    with pytest.raises(UnknownServing):
        store.choose(rater="bob", token=offer.token, choice="a")
    with pytest.raises(UnknownServing):
        store.play(rater="bob", token=offer.token, event="e", side="a", started=0, ended=1)
    with pytest.raises(UnknownServing):  # a pair takes no mark
        store.rate(rater="ann", token=offer.token, score=3)
    assert count(store, choices) == count(store, plays) == 0


def test_the_same_choice_again_is_acknowledged_and_another_refused(store: Store) -> None:
    offer = serve(store)
    assert store.choose(rater="ann", token=offer.token, choice="a")
    assert not store.choose(rater="ann", token=offer.token, choice="a")
    for other in ("b", "none"):
        with pytest.raises(AlreadyAnswered, match="before, with 'a'"):
            store.choose(rater="ann", token=offer.token, choice=other)
    assert count(store, choices) == store.num_answers("ann") == 1
    assert store.num_answers("bob") == 0


def test_a_choice_waits_for_both_clips(store: Store, clock: Clock) -> None:
    offer = serve(store)
    hear(store, clock, offer, "a")
    with pytest.raises(NotHeard, match=r"at least 50% first \(clip b: 0%\)"):
        store.choose(rater="ann", token=offer.token, choice="a", minimum_share=0.5)
    hear(store, clock, offer, "b", 0.9)
    with pytest.raises(NotHeard, match="clip b: 45%"):
        store.choose(rater="ann", token=offer.token, choice="a", minimum_share=0.5)
    assert count(store, choices) == 0
    hear(store, clock, offer, "b", 1.0)
    assert store.choose(rater="ann", token=offer.token, choice="a", minimum_share=0.5)


def test_going_on_without_a_trophy_is_free(store: Store) -> None:
    offer = serve(store)
    assert store.choose(rater="ann", token=offer.token, choice="none", minimum_share=1.0)


def test_playback_is_bounded_by_the_clip_and_by_the_clock(store: Store, clock: Clock) -> None:
    offer = serve(store)
    stretches = [(-0.1, 1.0), (1.0, 1.0), (1.0, 2.1), (float("nan"), 1.0)]
    for number, (started, ended) in enumerate(stretches):
        with pytest.raises(Impossible, match="no stretch"):
            store.play(
                rater="ann",
                token=offer.token,
                event=str(number),
                side="a",
                started=started,
                ended=ended,
            )
    with pytest.raises(Impossible, match="more was played than time"):
        store.play(rater="ann", token=offer.token, event="e", side="a", started=0, ended=2)
    assert count(store, plays) == 0
    clock.pass_by(2.0)
    for _ in range(2):  # the event is sent twice and counts once
        heard = store.play(rater="ann", token=offer.token, event="e", side="a", started=0, ended=2)
        assert heard == {"a": 1.0, "b": 0.0}
    assert count(store, plays) == 1


def test_a_mark_is_kept_once_for_a_rater_and_a_clip(store: Store) -> None:
    offers = [
        store.serve(rater="ann", request=request, prompt=PROMPT, clip_a="clip-0-0")
        for request in ("r1", "r2")
    ]
    assert list(offers[0].clips) == ["a"]
    assert store.rate(rater="ann", token=offers[0].token, score=4)
    for offer in offers:
        assert not store.rate(rater="ann", token=offer.token, score=4)
        with pytest.raises(AlreadyAnswered, match="with 4"):
            store.rate(rater="ann", token=offer.token, score=5)
    assert store.raters_of_clips() == {"clip-0-0": {"ann"}}


def test_an_identifier_means_one_prompt(store: Store) -> None:
    other = replace(playable(0, 9), prompt=Prompt(id="p0", text="another tune"))
    with pytest.raises(
        ValueError, match="'p0' is 'tune number 0' in the store, not 'another tune'"
    ):
        store.add_clips([other])
    assert count(store, clips) == 12


def test_clips_come_back_whole_and_are_added_once(store: Store) -> None:
    store.add_clips([playable(0, 0), playable(5, 5)])
    assert count(store, clips) == 13
    with store.engine.connect().execution_options(**READS) as connection:
        row = connection.execute(select(clips).where(clips.c.id == "clip-5-5")).one()
    assert int(row.seed) == 2**64 - 6
    assert row.tokens == playable(5, 5).clip.tokens.astype("<i2").tobytes()
    assert (row.steps, row.streams) == (5, 3)


def test_many_raters_at_once_lose_nothing(store: Store) -> None:
    def answer(number: int) -> bool:
        rater = f"rater-{number % 8}"
        offer = serve(store, rater=rater, request=f"r{number // 2}")  # each request comes twice
        return store.choose(rater=rater, token=offer.token, choice="b")

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(answer, [n for k in range(200) for n in (2 * k, 2 * k)]))
    assert sum(kept) == count(store, choices) == count(store, servings) == 200


def test_two_answers_at_the_same_moment_leave_one(store: Store) -> None:
    offers = [serve(store, request=str(n)) for n in range(40)]

    def answer(number: int) -> str:
        choice: Choice = "b" if number % 2 else "a"
        try:
            store.choose(rater="ann", token=offers[number // 2].token, choice=choice)
        except AlreadyAnswered:
            return "refused"
        return "kept"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(answer, range(80)))
    assert outcomes.count("kept") == outcomes.count("refused") == count(store, choices) == 40


def test_what_was_kept_survives_a_killed_process(store: Store) -> None:
    program = """
import os, signal, sys
from musicrl.preference.store import Store
from tests.preference.playable import playable
store = Store.open(sys.argv[1])
for n in range(25):
    prompt = playable(0, 0).prompt
    offer = store.serve(rater='k', request=str(n), prompt=prompt, clip_a='clip-0-0', clip_b='clip-0-1')
    store.choose(rater='k', token=offer.token, choice='a')
print('kept', flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    url = store.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", program, url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "kept\n", done.stderr
    assert done.returncode < 0
    assert store.num_answers("k") == 25


@pytest.mark.parametrize(
    ("database", "sentence"),
    [
        ("sqlite://", "a database of SQLite needs a file to outlive the process"),
        ("nothing://", "nothing:// is not the URL of a database"),
        (
            "oracle+nothing://somebody:secret@host/db",
            r"oracle\+nothing://...@host/db is not the URL",
        ),
    ],
)
def test_an_unusable_database_is_named(database: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as fault:
        Store.open(database)
    assert "secret" not in str(fault.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to look at\n" * 100)
    with pytest.raises(ValueError, match=f"cannot open the database {path}: "):
        Store.open(path)


@pytest.mark.slow
def test_ten_thousand_choices(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "many.db")
    # Only the number of answers is at stake here: without the flushes it takes a fraction of the time.
    event.listen(store.engine, "connect", lambda db, _: db.execute("PRAGMA synchronous=OFF"))
    store.close()  # the next connection is a new one
    store.add_clips(playable(0, index) for index in range(2))
    rows = [
        {"token": f"t{n}", "rater": f"rater-{n % 50}", "request": f"r{n}", "prompt": "p0"}
        | {"clip_a": "clip-0-0", "clip_b": "clip-0-1", "served": 0.0}
        for n in range(10_000)
    ]
    with store.engine.begin() as connection:
        connection.execute(servings.insert(), rows)

    def answer(n: int) -> bool:
        return store.choose(rater=f"rater-{n % 50}", token=f"t{n}", choice="b")

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(answer, range(10_000)))
    assert count(store, choices) == 10_000
    assert store.num_answers("rater-7") == 200
    store.close()
