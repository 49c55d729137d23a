"""The listening page: what stands in it, how loud its clips are, and that a browser plays them."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster.cli import EXIT_FAULT, main
from musicrl.audio import loudness
from musicrl.evaluation.listening import (
    LOUDNESS_DB,
    ListenConfig,
    chosen_prompts,
    column_names,
    gain_of,
    run_listening,
)
from musicrl.evaluation.listening_page import Cell, to_html
from musicrl.prompts import load_prompts
from musicrl.types import Clips, Prompt

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Sources(HTMLParser):
    """The audio elements of a page, in order, and the heads of its rows and columns."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.audio: list[dict[str, str | None]] = []
        self.heads: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "audio":
            self.audio.append(dict(attrs))
        if tag == "th":
            self.heads.append(dict(attrs)["scope"])


@pytest.fixture(scope="module")
def page(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts; clips of 0.4 s; a loud, a soft and a silent real one."""
    out = tmp_path_factory.mktemp("page")
    config = ListenConfig(
        weights=tiny_world, prompts=3, policies=(Path("policy-noisy.safetensors"),), out=out
    )
    time = np.arange(6400, dtype=np.float32)
    audio = np.stack([np.sin(0.2 * time) * gain for gain in (0.9, 0.02, 0.0)]).astype(np.float32)
    real = Clips(audio=audio, sample_rate=16_000)
    run_listening(config, chosen_prompts(config), real=real)
    return out


def test_every_clip_of_every_column_is_there(page: Path) -> None:
    facts = json.loads((page / "listening.json").read_text())
    columns = facts["columns"]
    assert list(columns) == ["real", "reconstruction", "base", "policy-noisy"]
    assert columns["base"]["origin"].startswith("policy@")
    sources = Sources((page / "index.html").read_text())
    assert sources.heads == ["col"] * 5 + ["row"] * 3
    wanted = [columns[name]["clips"][row]["file"] for row in range(3) for name in columns]
    assert [element["src"] for element in sources.audio] == wanted
    assert len(set(wanted)) == 12
    for column in columns.values():
        for clip in column["clips"]:
            assert (page / clip["file"]).stat().st_size == clip["bytes"] < 6000
    texts = [prompt["text"] for prompt in facts["prompts"]]
    assert sources.audio[0]["aria-label"] == f"real: {texts[0]}"


def test_the_readme_links_a_page_whose_clips_are_there_and_small() -> None:
    link = "docs/listening/index.html"
    assert f"({link})" in (ROOT / "README.md").read_text(encoding="utf-8")
    page = ROOT / link
    facts = json.loads(page.with_name("listening.json").read_text())
    assert list(facts["columns"]) == ["real", "reconstruction", "base", "R", "U", "RU"]
    sources = [str(audio["src"]) for audio in Sources(page.read_text(encoding="utf-8")).audio]
    assert len(sources) == 6 * len(facts["prompts"])
    clips = {clip["file"]: clip for column in facts["columns"].values() for clip in column["clips"]}
    assert set(sources) == set(clips)
    for file, clip in clips.items():
        audio, rate = soundfile.read(page.parent / file, dtype="float32")
        assert (page.parent / file).stat().st_size == clip["bytes"] < 50_000
        assert len(audio) / rate == pytest.approx(6, abs=0.3)
        assert loudness(audio) <= LOUDNESS_DB + 1


def test_a_column_bears_the_shortest_name_that_no_other_bears() -> None:
    paths = ["runs/a/R", "runs/U.safetensors", "runs/b/RU", "runs/c/RU", "runs/base"]
    paths += ["policy.safetensors", "runs/a/R/checkpoints/step_000010/policy.safetensors"]
    named = column_names([Path(path) for path in paths])
    assert named == ["R", "U", "runs/b/RU", "runs/c/RU", "runs/base", "policy", paths[6]]


def test_clips_are_of_one_loudness_and_the_gain_is_told(page: Path) -> None:
    columns = json.loads((page / "listening.json").read_text())["columns"]
    loud, soft, silent = columns["real"]["clips"]
    assert loud["loudness"] == pytest.approx(20 * math.log10(0.9 / math.sqrt(2)), abs=0.01)
    assert loud["gain"] == pytest.approx(LOUDNESS_DB - loud["loudness"])
    assert soft["gain"] > 10
    assert (silent["loudness"], silent["gain"]) == (None, 0.0)
    for clip in (loud, soft):
        audio, rate = soundfile.read(page / clip["file"], dtype="float32")
        assert rate == 16_000
        assert loudness(audio[1600:-1600]) == pytest.approx(LOUDNESS_DB, abs=0.7)
    told = (page / "index.html").read_text()
    assert f"<small>{loud['gain']:+.1f} dB</small>" in told
    assert "<small>silent</small>" in told


def test_a_click_is_not_driven_into_clipping() -> None:
    click = np.zeros(16_000, np.float32)
    click[100] = 0.5
    assert gain_of(click) == pytest.approx(-1 - 20 * math.log10(0.5), abs=1e-4)


def test_a_caption_cannot_become_markup() -> None:
    prompt = Prompt(id="a", text='<b>"loud" & slow</b>')
    cell = Cell(file="a.mp3", loudness=-20.0, gain=0.0, bytes=1)
    told = to_html([prompt], {"a<b": "o"}, {"a<b": [cell]}, loudness=-20.0)
    assert "<b>" not in told
    assert Sources(told).audio[0]["aria-label"] == f"a<b: {prompt.text}"


def test_prompts_are_spread_over_the_table(tiny_world: Path) -> None:
    known = load_prompts(tiny_world / "prompts.parquet", split="heldout")
    chosen = chosen_prompts(ListenConfig(weights=tiny_world, prompts=4))
    assert [known.index(prompt) for prompt in chosen] == [0, 3, 6, 9]
    with pytest.raises(ValueError, match=r"prompts is 13, but .* holds only 12"):
        chosen_prompts(ListenConfig(weights=tiny_world, prompts=13))


def test_faults_are_one_sentence(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page"
    args = ["listen", "--weights", str(tiny_world), "--prompts", "2", "--out", str(out)]
    assert main(["listen", "no/run", *args[1:]]) == EXIT_FAULT
    assert "no policy at no/run" in capsys.readouterr().err
    assert main([*args, "--world", str(tmp_path)]) == EXIT_FAULT
    assert "no test clips in" in capsys.readouterr().err
    assert main([*args, "--prompts", "0"]) == EXIT_FAULT
    assert "prompts must be 1 or more, got 0" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.browser
def test_a_browser_plays_it_from_a_folder(page: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        view = browser.new_page(viewport={"width": 320, "height": 640})
        faults: list[str] = []
        view.on("console", lambda message: faults.append(message.text))
        view.goto((page / "index.html").as_uri())
        seconds = view.evaluate(
            "async () => { const a = document.querySelector('audio'); await a.play();"
            " return a.duration }"
        )
        wide = view.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert 0.35 < seconds < 0.6
    assert wide <= 320
    assert faults == []
