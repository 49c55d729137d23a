from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import soundfile
from sqlalchemy import select
from starlette.testclient import TestClient

from cluster.cli import main
from musicrl.preference.database import READS
from musicrl.preference.players import OnePlayer, Player
from musicrl.preference.pool import load_worker, read_pool
from musicrl.preference.server import PAGE, Rules, clean, make_app
from musicrl.preference.session import COOKIE, Sessions
from musicrl.preference.shield import HEADERS, MOST_BYTES
from musicrl.preference.source import ClipSource, PoolSource, SamplerSource
from musicrl.preference.store import Store
from musicrl.preference.tables import prompts
from musicrl.prompts import load_prompts
from musicrl.sampler.sampling import SamplingConfig
from musicrl.types import Clips, Prompt, Rollouts
from tests.preference.playable import Clock, write_tones

KEY = "k" * 32
Serve = Callable[..., Callable[[], TestClient]]


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("pools") / "pool")


@pytest.fixture
def database(tmp_path: Path, clock: Clock) -> Store:
    return Store.open(tmp_path / "served.db", clock=clock)


@pytest.fixture
def serve(tones: Path, database: Store) -> Iterator[Serve]:
    """`serve(rules)` starts an application and gives what opens a new listener's browser on it."""
    with ExitStack() as stack:

        def start(source: ClipSource | None = None, **rules: Any) -> Callable[[], TestClient]:
            source = source or PoolSource(tones, database)
            token = rules.get("access_token")
            app = make_app(Rules(**rules), database, source, Sessions(KEY, token))
            stack.enter_context(TestClient(app))  # runs the lifespan

            def browser() -> TestClient:
                client = TestClient(app)
                client.get("/" if token is None else f"/?token={token}")
                return client

            return browser

        yield start


@pytest.fixture
def sampler(tiny_world: Path, tmp_path: Path, database: Store) -> SamplerSource:
    worker, name = load_worker(tiny_world, None, SamplingConfig())
    known = load_prompts(tiny_world / "prompts.parquet", split="train")
    players = OnePlayer(Player(worker, name))
    return SamplerSource(players, known, tmp_path / "clips", database, queue=4)


def offered(browser: TestClient, request: str = "request-1", **ask: Any) -> dict[str, Any]:
    answer = browser.post("/api/offers", json={"request": request, **ask})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def hear(browser: TestClient, offer: dict[str, Any], clock: Clock, share: float = 1.0) -> None:
    """Play that share of every clip, taking the time that it takes."""
    for side, clip in offer["clips"].items():
        clock.pass_by(clip["seconds"])
        body = {
            "token": offer["token"],
            "event": f"event-{side}-{1000 * clock.now:.0f}",
            "side": side,
        }
        span = {"started": 0.0, "ended": share * clip["seconds"]}
        assert browser.post("/api/plays", json={**body, **span}).status_code == 200


def choose(browser: TestClient, offer: dict[str, Any], choice: str) -> Any:
    return browser.post("/api/choices", json={"token": offer["token"], "choice": choice})


def rate(browser: TestClient, offer: dict[str, Any], score: int) -> Any:
    return browser.post("/api/ratings", json={"token": offer["token"], "score": score})


def test_a_listener_hears_chooses_and_is_remembered(serve: Serve, clock: Clock) -> None:
    browser = serve()()
    state = browser.get("/api/session").json()
    assert state["answered"] == 0
    offer = offered(browser, prompt=state["suggestions"][0])
    assert offer["prompt"] == state["suggestions"][0]
    for clip in offer["clips"].values():
        answer = browser.get(clip["url"])
        assert answer.headers["content-type"] == "audio/wav"
        audio, rate_hz = soundfile.read(io.BytesIO(answer.content))
        assert len(audio) / rate_hz == clip["seconds"]
    hear(browser, offer, clock)
    assert choose(browser, offer, "b").json() == {"kept": True, "new": True, "answered": 1}
    assert browser.get("/api/session").json()["answered"] == 1


def test_a_choice_before_both_were_heard_is_a_conflict(serve: Serve, clock: Clock) -> None:
    browser = serve(minimum_share=0.6)()
    offer = offered(browser)
    hear(browser, offer, clock, share=0.5)
    answer = choose(browser, offer, "a")
    assert answer.status_code == 409
    assert answer.json() == {"error": "listen to at least 60% first (clip a: 50%, clip b: 50%)"}
    assert choose(browser, offer, "none").status_code == 200


def test_playback_that_no_clock_allows_is_a_conflict(serve: Serve) -> None:
    browser = serve()()
    offer = offered(browser)
    spans = [{"started": 0.0, "ended": 0.5}] * 4  # two seconds of sound at once
    statuses = [
        browser.post(
            "/api/plays",
            json={"token": offer["token"], "event": f"event-00{n}", "side": "a", **span},
        ).status_code
        for n, span in enumerate(spans)
    ]
    assert statuses == [200, 200, 409, 409]


def test_an_answer_sent_twice_is_kept_once_and_another_refused(serve: Serve, clock: Clock) -> None:
    browser = serve()()
    offer = offered(browser)
    hear(browser, offer, clock)
    assert choose(browser, offer, "a").json()["new"] is True
    assert choose(browser, offer, "a").json() == {"kept": True, "new": False, "answered": 1}
    answer = choose(browser, offer, "b")
    assert answer.status_code == 409
    assert answer.json() == {"error": "this was answered before, with 'a'"}


def test_a_replayed_request_gets_the_same_pair(serve: Serve) -> None:
    browser = serve()()
    first = offered(browser, "request-1")
    assert offered(browser, "request-1") == first
    assert offered(browser, "request-2") != first


def test_two_raters_do_not_see_each_other(serve: Serve, clock: Clock) -> None:
    new_browser = serve()
    ann, bob = new_browser(), new_browser()
    of_ann, of_bob = offered(ann), offered(bob)
    assert of_ann["token"] != of_bob["token"]
    assert choose(bob, of_ann, "none").status_code == 404
    assert bob.get(of_ann["clips"]["a"]["url"]).status_code == 404
    hear(ann, of_ann, clock)
    hear(bob, of_bob, clock)
    assert choose(ann, of_ann, "a").json()["answered"] == 1
    assert choose(bob, of_bob, "b").json()["answered"] == 1


def test_no_answer_says_what_made_a_clip(serve: Serve, clock: Clock) -> None:
    browser = serve()()
    offer = offered(browser)
    hear(browser, offer, clock)
    answers = [browser.get(clip["url"]) for clip in offer["clips"].values()]
    said = [str(offer), choose(browser, offer, "a").text, browser.get("/api/session").text]
    said += [str(answer.headers) for answer in answers]
    for text in said:
        assert not re.search(r"policy-\d|@0f|clip-\d|seed|\.wav", text)


def test_the_order_of_a_pair_is_random(serve: Serve, database: Store) -> None:
    new_browser = serve()
    for _ in range(3):
        browser = new_browser()
        for number in range(18):  # all the pairs there are: 3 prompts of 4 clips
            offered(browser, f"request-{number}")
        assert "finished" in offered(browser, "request-18")
    orders = []
    for rater in {row.rater for row in served_rows(database)}:
        pairs = database.offered(rater)
        assert len({frozenset(pair) for pair in pairs}) == 18
        orders += [str(a) < str(b) for a, b in pairs]
    assert 10 < sum(orders) < 44


def served_rows(database: Store) -> list[Any]:
    from musicrl.preference.tables import servings

    with database.engine.connect().execution_options(**READS) as connection:
        return list(connection.execute(select(servings)))


def test_a_pool_plays_only_its_own_texts(serve: Serve) -> None:
    answer = serve()().post("/api/offers", json={"request": "request-1", "prompt": "a new tune"})
    assert answer.status_code == 422
    assert "choose one of the suggested texts" in answer.json()["error"]


def mark_one(browser: TestClient, number: int, clock: Clock, score: int = 4) -> str | None:
    """Hear what is offered and mark it; its text, None when nothing is left."""
    offer = offered(browser, f"request-{number}")
    if "finished" in offer:
        return None
    assert list(offer["clips"]) == ["a"]
    assert rate(browser, offer, score).status_code == 409
    hear(browser, offer, clock)
    assert rate(browser, offer, score).json()["new"] is True
    assert rate(browser, offer, score).json()["new"] is False
    assert rate(browser, offer, score % 5 + 1).status_code == 409
    return str(offer["prompt"])


def test_marks_are_gathered_until_three_raters_heard_all_of_a_text(
    serve: Serve, clock: Clock, database: Store
) -> None:
    """A pool of three texts, each played by four policies."""
    new_browser = serve(mode="rating", raters_per_pair=3)
    passers_by = [new_browser() for _ in range(3)]
    assert all(mark_one(browser, 0, clock) for browser in passers_by)
    for _ in range(3):
        browser = new_browser()
        texts = [mark_one(browser, number, clock) for number in range(13)]
        assert texts[-1] is None
        assert texts[0:12:4] == texts[3:12:4]  # four in a row are of one text
    assert len(set(texts[:-1])) == 3
    assert "finished" in offered(new_browser(), "request-0")
    marked = database.raters_of_clips()
    assert sum(map(len, marked.values())) == 3 * 12 + 3
    texts = [mark_one(passers_by[0], number, clock) for number in range(1, 5)]
    assert texts[2:] == [texts[0], None]  # what was begun may be ended, and no more


def test_marks_of_the_page_become_win_rates(
    tmp_path: Path, database: Store, serve: Serve, clock: Clock
) -> None:
    """Three raters of six texts: policy 1 is marked higher in four, alike in one, lower in one."""
    pool = write_tones(tmp_path / "pool", prompts=6, clips=2)
    marks = {"policy-0@0f": [3, 3, 3, 3, 3, 4], "policy-1@0f": [4, 4, 4, 4, 3, 3]}
    new_browser = serve(PoolSource(pool, database), mode="rating")
    policies = {clip.wav: clip.clip.policy for clip in read_pool(pool)}
    for _ in range(3):
        browser = new_browser()
        for number in range(12):
            offer = offered(browser, f"request-{number}")
            wav = browser.get(offer["clips"]["a"]["url"]).content
            (policy,) = {p for w, p in policies.items() if (pool / w).read_bytes() == wav}
            hear(browser, offer, clock)
            score = marks[policy][int(offer["prompt"].split()[-1])]
            assert rate(browser, offer, score).json()["new"] is True
        assert "finished" in offered(browser, "request-end")
    table, found = tmp_path / "ratings.parquet", tmp_path / "winrate.json"
    flags = ["--database", str(tmp_path / "served.db"), "--out", str(table)]
    assert main(["prefs", "export", "--what", "ratings", *flags]) == 0
    assert main(["prefs", "winrate", str(table), "--json", str(found)]) == 0
    report = json.loads(found.read_text())
    (pair,) = report["pairs"]
    assert (pair["a"], pair["b"], pair["rater"]) == ("policy-0@0f", "policy-1@0f", "people")
    assert (pair["wins"], pair["ties"], pair["losses"], pair["win_rate"]) == (3, 3, 12, 0.2)
    # Signed ranks of five equal differences: 3 for, 12 against; mean 7.5, variance 5 x 3^2 / 4.
    assert pair["p_value"] == pytest.approx(math.erfc(4.5 / math.sqrt(45 / 4) / math.sqrt(2)))
    assert {p: mos["mean"] for p, mos in report["mos"]["people"].items()} == {
        "policy-0@0f": pytest.approx(19 / 6),
        "policy-1@0f": pytest.approx(22 / 6),
    }


HOSTILE = {
    "<script>alert(1)</script><img src=x onerror=alert(1)>": None,
    "'); DROP TABLE choices; --": None,
    "../../../etc/passwd\x00.wav": "../../../etc/passwd .wav",
    "a 🎻 tune\r\nSet-Cookie: x=1": "a 🎻 tune Set-Cookie: x=1",
    "  x" + "\u0301" * 5 + "\u202e tune  ": "x" + "\u0301" * 5 + "\u202e tune",
}


@pytest.mark.parametrize(("typed", "kept"), HOSTILE.items())
def test_what_is_typed_is_only_ever_text(
    typed: str,
    kept: str | None,
    serve: Serve,
    sampler: SamplerSource,
    database: Store,
    clock: Clock,
) -> None:
    browser = serve(sampler)()
    offer = offered(browser, prompt=typed)
    assert offer["prompt"] == (kept or typed)
    assert all(re.fullmatch(r"[0-9a-f]{24}\.wav", f.name) for f in sampler.folder.iterdir())
    hear(browser, offer, clock)
    assert choose(browser, offer, "a").status_code == 200
    with database.engine.connect().execution_options(**READS) as connection:
        assert connection.scalars(select(prompts.c.text)).all() == [kept or typed]
    assert database.num_answers() == 1


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ('{"request": "request-1", "prompt": ""}', 422, "the text is empty"),
        ('{"request": "request-1", "prompt": " \\n\\t "}', 422, "the text is empty"),
        ('{"request": "request-1", "prompt": "%s"}' % ("x" * 301), 422, "300 characters at most"),
        ('{"request": "request-1", "prompt": "%s"}' % ("x" * 10**6), 413, "a request may hold"),
        ('{"request": "request-1", "prompt": "\\ud800"}', 422, "the text is empty"),
        ('{"request": "request-1", "prompt": 7}', 422, "prompt: Input should be a valid string"),
        ('{"request": "../../etc", "prompt": "x"}', 422, "request: String should match"),
        ('{"request": "request-1", "policy": "x"}', 422, "policy: Extra inputs"),
        ('{"prompt": "x"}', 422, "request: Field required"),
        ("[1]", 422, "the request: "),
        ("{", 422, "the request: JSON decode error"),
    ],
)
def test_a_body_that_is_refused_is_not_repeated(
    body: str, status: int, sentence: str, serve: Serve, sampler: SamplerSource
) -> None:
    browser = serve(sampler)()
    headers = {"Content-Type": "application/json"}
    answer = browser.post("/api/offers", content=body, headers=headers)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]
    assert len(answer.content) < 300
    assert not sampler.folder.exists()


def test_a_body_without_a_length_is_bounded_too(serve: Serve) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(MOST_BYTES // 1000 + 2):
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    answer = serve()().post("/api/offers", content=pieces(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize("score", [0, 6, 2.5, "3", True, None])
def test_only_whole_marks_from_one_to_five(score: object, serve: Serve) -> None:
    browser = serve(mode="rating")()
    body = {"token": offered(browser)["token"], "score": score}
    assert browser.post("/api/ratings", json=body).status_code == 422


@pytest.mark.parametrize(
    "span", [{"ended": -1.0}, {"ended": 0.6}, {"started": 0.4, "ended": 0.2}, {"side": "c"}]
)
def test_a_stretch_that_is_none_is_refused(span: dict[str, Any], serve: Serve) -> None:
    browser = serve()()
    body = {"token": offered(browser)["token"], "event": "event-001", "side": "a", "started": 0.0}
    answer = browser.post("/api/plays", json={**body, "ended": 0.1, **span})
    assert answer.status_code in (409, 422)


def test_nothing_is_told_without_a_session(serve: Serve) -> None:
    browser = serve()()
    browser.cookies.clear()
    for answer in (
        browser.get("/api/session"),
        browser.post("/api/offers", json={"request": "request-1"}),
        browser.post("/api/choices", json={"token": "t" * 10, "choice": "a"}),
        browser.get("/api/clips/token/a"),
    ):
        assert answer.status_code == 401
        assert answer.json() == {"error": "there is no session: open the page again"}


def test_a_session_stays_the_same_and_cannot_be_made_up(serve: Serve) -> None:
    browser = serve()()
    cookie = browser.cookies[COOKIE]
    browser.get("/")
    assert browser.cookies[COOKIE] == cookie
    browser.cookies.clear()
    browser.cookies.set(COOKIE, cookie[:-2] + "xx")
    assert browser.get("/api/session").status_code == 401


def test_an_access_token_opens_the_page_and_leaves_the_address(serve: Serve) -> None:
    admitted = serve(access_token="s3cret/&")
    browser = TestClient(admitted().app)
    for path in ("/", "/?token=", "/?token=s3cret"):
        assert browser.get(path).status_code == 401
        assert COOKIE not in browser.cookies
    assert browser.get("/api/session").status_code == 401
    answer = browser.get("/", params={"token": "s3cret/&"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert browser.get("/").status_code == browser.get("/api/session").status_code == 200
    open_page = serve()()  # a session of a server without the token
    browser.cookies.clear()
    browser.cookies.set(COOKIE, open_page.cookies[COOKIE])
    assert browser.get("/").status_code == 401


def test_cookies_are_for_this_site_and_no_script(serve: Serve) -> None:
    app = serve(secure_cookie=True)().app
    header = TestClient(app).get("/").headers["set-cookie"]
    assert {"HttpOnly", "SameSite=lax", "Secure", "Path=/"} <= set(header.split("; "))


def test_who_asks_too_often_is_told_when_to_return(serve: Serve) -> None:
    new_browser = serve(requests_per_minute=5)
    browser = new_browser()
    answers = [browser.get("/api/session") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert int(answers[-1].headers["retry-after"]) <= 12
    assert new_browser().get("/api/session").status_code == 200  # of another session


def test_many_sessions_of_one_address_share_a_limit(serve: Serve) -> None:
    new_browser = serve(requests_per_minute_of_address=6)
    statuses = [new_browser().get("/api/session").status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


def test_every_answer_binds_the_browser(serve: Serve) -> None:
    browser = serve()()
    paths = ("/", "/page.js", "/page.css", "/player.js", "/icon.svg", "/api/session", "/nothing")
    for answer in (*map(browser.get, paths), browser.post("/api/offers", content=b"x" * 10**5)):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    for path in ("/docs", "/redoc", "/openapi.json", "/page/../server.py", "/%2e%2e/server.py"):
        assert browser.get(path).status_code == 404


def test_another_site_may_not_send_answers(serve: Serve) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}
    answer = serve()().post("/api/offers", json={"request": "request-1"}, headers=headers)
    assert answer.status_code == 403


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    assert set(texts) == {"index.html", "page.css", "page.js", "player.js", "icon.svg"}
    for name, text in texts.items():
        found = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text)
        assert set(found) <= {"http://www.w3.org"}, name  # the name of SVG, never fetched
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", texts["index.html"])


class SlowWorker:
    """A worker that makes no clip until it is told to."""

    def __init__(self) -> None:
        self.go = Event()

    def generate(self, *args: object, **fields: object) -> tuple[Rollouts, Clips]:
        self.go.wait(10)
        raise OSError("the sampler broke")


def test_who_comes_to_a_full_queue_is_asked_to_come_again(tmp_path: Path, database: Store) -> None:
    worker, prompt = SlowWorker(), Prompt(id="p", text="a tune")
    players = OnePlayer(Player(worker, "x"))  # type: ignore[arg-type]
    source = SamplerSource(players, [prompt], tmp_path, database, queue=2)
    app = make_app(Rules(wait_seconds=0.05), database, source, Sessions(KEY))
    with TestClient(app) as browser:
        browser.get("/")
        answers = [browser.post("/api/offers", json={"request": f"request-{n}"}) for n in range(3)]
        assert [answer.status_code for answer in answers] == [503] * 3
        assert answers[0].headers["retry-after"] == "5"
        assert "not ready in time" in answers[0].json()["error"]
        worker.go.set()
        for future in [source._thread.submit(lambda: None)]:
            future.result(10)
        assert source._waiting == 0


@pytest.mark.parametrize("text", ["", " \u2028\u0085 "])
def test_a_text_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        clean(text, 10)
