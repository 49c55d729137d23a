from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from cluster.cli import EXIT_FAULT, main
from musicrl.preference.dataset import read_comparisons
from musicrl.preference.store import Store
from tests.preference.playable import write_tones
from tests.preference.serving import ServerProcess


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of so many pairs that no rater comes to its end."""
    return write_tones(
        tmp_path_factory.mktemp("pools") / "pool", prompts=2, clips=120, seconds=0.05
    )


def offer(browser: httpx.Client) -> str:
    answer = browser.post("/api/offers", json={"request": uuid4().hex}).raise_for_status()
    token: str = answer.json()["token"]
    return token


def choose(browser: httpx.Client, token: str, choice: str = "a") -> httpx.Response:
    return browser.post("/api/choices", json={"token": token, "choice": choice})


def kept(out: Path) -> int:
    store = Store.open(out / "preferences.db")
    try:
        return store.num_answers()
    finally:
        store.close()


def test_many_raters_at_once_and_a_clean_stop(tones: Path, tmp_path: Path) -> None:
    raters, each = 8, 60

    def listen(number: int) -> int:
        browser = server.browser()
        tokens = [offer(browser) for _ in range(each)]
        assert len(set(tokens)) == each
        for token in tokens:
            assert choose(browser, token, "ab"[number % 2]).json()["new"]
        return int(choose(browser, tokens[0], "ab"[number % 2]).json()["answered"])

    with ServerProcess(tmp_path, "--pool", str(tones), "--minimum-share", "0") as server:
        with ThreadPoolExecutor(raters) as pool:
            answered = list(pool.map(listen, range(raters)))
        code, out, err = server.interrupt()
    assert answered == [each] * raters
    assert (code, out, err) == (0, "stopped\n", "")
    assert kept(tmp_path) == raters * each
    database, pairs = str(tmp_path / "preferences.db"), tmp_path / "pairs.parquet"
    flags = ["--database", database, "--out", str(pairs), "--minimum-share", "0"]
    assert main(["prefs", "export", *flags]) == 0
    rows = [row for batch in read_comparisons([pairs]) for row in batch]
    assert len({row.rater for row in rows}) == raters
    assert [row.choice for row in rows].count("a") == raters * each // 2


@dataclass
class Listener:
    """Answers until the server is gone, and remembers what was acknowledged."""

    browser: httpx.Client
    tokens: list[str]
    acknowledged: list[str] = field(default_factory=list)
    sent: str = ""

    def listen(self) -> None:
        for token in self.tokens:
            self.sent = token
            try:
                answer = choose(self.browser, self.sent)
            except httpx.TransportError:
                return
            assert answer.json()["kept"]
            self.acknowledged.append(self.sent)


def test_no_acknowledged_answer_dies_with_the_server(tones: Path, tmp_path: Path) -> None:
    flags = ("--pool", str(tones), "--minimum-share", "0")
    with ServerProcess(tmp_path, *flags) as server:
        listeners = []
        for _ in range(4):
            browser = server.browser()
            listeners.append(Listener(browser, [offer(browser) for _ in range(80)]))
        threads = [threading.Thread(target=listener.listen) for listener in listeners]
        for thread in threads:
            thread.start()
        while sum(len(listener.acknowledged) for listener in listeners) < 40:
            threads[0].join(0.001)
        server.kill()
        for thread in threads:
            thread.join(30)
    counts = [len(listener.acknowledged) for listener in listeners]
    assert 40 <= sum(counts) < 320, "the server was killed between requests and answers"
    assert sum(counts) <= kept(tmp_path) <= sum(counts) + 4
    with ServerProcess(tmp_path, *flags) as again:
        for listener in listeners:
            cookies = listener.browser.cookies
            with httpx.Client(base_url=again.url, cookies=dict(cookies)) as browser:
                # What was lost on the way is sent again by the page; all else changes nothing.
                assert choose(browser, listener.sent).json()["kept"]
                for token in listener.acknowledged:
                    assert choose(browser, token).json()["new"] is False
                    assert choose(browser, token, "b").status_code == 409
    assert kept(tmp_path) == sum(len({*one.acknowledged, one.sent}) for one in listeners)


def test_clips_are_sampled_on_demand(tiny_world: Path, tmp_path: Path) -> None:
    flags = ("--weights", str(tiny_world), "--minimum-share", "0", "--clip-seconds", "0.4")
    with ServerProcess(tmp_path, *flags, "--token", "a key") as server:
        browser = server.browser()
        assert browser.get("/api/session").status_code == 401
        browser.get("/", params={"token": "a key"})
        body = {"request": uuid4().hex, "prompt": "a tune that nobody asked for before"}
        found = browser.post("/api/offers", json=body).json()
        sounds = [browser.get(clip["url"]).content for clip in found["clips"].values()]
        assert sounds[0] != sounds[1]
        assert sorted(sounds) == sorted(f.read_bytes() for f in (tmp_path / "clips").iterdir())
        assert choose(browser, found["token"]).json()["new"]
        assert server.interrupt() == (0, "stopped\n", "")
    assert (tmp_path / "session.key").stat().st_mode & 0o777 == 0o600


def test_a_port_that_is_taken(tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["collect", "--pool", str(tones), "--port", port]) == EXIT_FAULT
    message = f"musicrl: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--mode", "rating"], "mode rating serves the clips of a pool: give it with --pool"),
        (["--pool", "p", "--policy", "q"], "clips come from the pool or from the policy"),
        (["--minimum-share", "1.5"], "minimum_share must be 0 to 1, got 1.5"),
        (["--port", "70000"], "port must be 0 to 65535, got 70000"),
        (["--queue", "0"], "queue must be 1 or more, got 0"),
        (["--mode", "rank"], "mode is 'rank', expected one of compare, rating"),
    ],
)
def test_one_sentence(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", *flags]) == EXIT_FAULT
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_what_cannot_be_served_is_named_and_leaves_no_port_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", str(tmp_path), "--pool", "no/pool", "--port", "0"]
    assert main(["collect", *flags]) == EXIT_FAULT
    assert capsys.readouterr().err == ("musicrl: no file of preferences at no/pool/pool.parquet\n")


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.commands.prefs.EXTRA", ("no_such_package",))
    for args in (["collect"], ["prefs", "export"]):
        assert main(args) == EXIT_FAULT
        assert capsys.readouterr().err == (
            "musicrl: this needs no_such_package: install the extra with "
            "pip install 'musicrl[collect]'\n"
        )
