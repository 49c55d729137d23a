"""The whole loop from base to report, in a small world: done once, skipped after, continued."""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from musicrl.checkpoint import load_tensors, save_tensors
from musicrl.config import TrainConfig
from musicrl.evaluation.pitch import has_tracker
from musicrl.reproduction.budget import affordable_updates
from musicrl.reproduction.config import ReproduceConfig
from musicrl.reproduction.plan import planned
from musicrl.reproduction.reproduce import seeds_of
from musicrl.solo import solo
from tests.reproduction.conftest import Reproduce, Small

PROMPTS, RATERS = 4, 15


class Trainer:
    """`solo` that remembers what it trained."""

    def __init__(self) -> None:
        self.runs: list[TrainConfig] = []

    def __call__(self, config: TrainConfig) -> dict[str, Any]:
        self.runs.append(config)
        return solo(config)


@dataclass(frozen=True)
class Done:
    """A reproduction that ran to its end."""

    config: ReproduceConfig
    runs: list[TrainConfig]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def done(small: Small, quietly: Reproduce, tmp_path_factory: pytest.TempPathFactory) -> Done:
    config, trainer = small(tmp_path_factory.mktemp("done")), Trainer()
    return Done(config, report=quietly(config, trainer), runs=trainer.runs)


def test_models_are_trained_one_from_another(done: Done) -> None:
    assert [run.out.name for run in done.runs] == ["R", "U", "RU"]
    r, u, ru = done.runs
    assert [run.iterations for run in (r, u, ru)] == [5, 3, 2]
    assert r.reward.weights == {"text": 1.0, "quality": 1.0}
    assert u.reward.weights == {"text": 0.0, "preference": 1.0}
    # RU starts from R, which the learner also holds as its KL reference.
    assert ru.model.policy == done.config.out / "seed0/R/checkpoints/step_000005/policy.safetensors"


def test_all_pairs_are_compared(done: Done) -> None:
    first = [p for p in done.report["pairs"] if p["rater"] == "simulated raters, held-out judge"]
    pairs = {("base, other clips", "base"), ("R", "base"), ("U", "base"), ("RU", "base")}
    pairs |= {("U", "R"), ("RU", "R"), ("RU", "U")}
    assert {(p["seed"], p["a"], p["b"]) for p in first} == {(0, a, b) for a, b in pairs}
    for pair in first:
        compared = pair["wins"] + pair["ties"] + pair["losses"] + pair["unmarked"]
        assert compared == PROMPTS * RATERS


def test_models_are_measured_against_their_references(done: Done) -> None:
    models = {m["name"]: m for m in done.report["models"]}
    assert list(models) == ["base", "base, other clips", "R", "U", "RU"]
    assert models["base"]["kl"]["reference"]["mean"] == 0
    assert models["base"]["distances"] == {}
    assert models["RU"]["kl_reference"] == "R"
    kl = models["RU"]["kl"]
    assert 0 < kl["reference"]["mean"] < kl["base"]["total"]["mean"]  # two updates, and seven
    assert set(models["U"]["rewards"]) == {"text", "quality", "preference"}
    assert {"frechet/judge", "kernel/tagger"} < models["R"]["distances"].keys()


def test_the_report_stands_alone_and_says_what_failed(done: Done) -> None:
    out = done.config.out
    assert done.report == json.loads((out / "report.json").read_text())
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert page.count("<audio") == 2 * 4
    assert page.count('src="data:audio/mpeg;base64,') == page.count(" src=") == 2 * 4
    assert "SIMULATED" in page
    assert "SIMULATED" in text
    said = {"holds": "holds", "fails": "FAILS", "not shown": "NOT SHOWN"}
    assert len(done.report["orderings"]) == 5
    for found in done.report["orderings"]:
        sentence = f"{found['better']} over {found['worse']}: {said[found['verdict']]}"
        assert sentence in text
        assert sentence in page
    assert list((out / "tensorboard").glob("events.*"))


def test_what_became_of_music_is_said_of_every_model(done: Done) -> None:
    found = {row["name"]: row for row in done.report["kept"]}
    assert list(found) == ["base, other clips", "R", "U", "RU"]
    columns = {
        name: load_tensors(
            done.config.out / f"seed0/measured/{name}.safetensors", kind="measurement"
        )[0]
        for name in ("base", "R", "U")
    }
    moved = {
        k: columns[k]["column:judge/sounding"] - columns["base"]["column:judge/sounding"]
        for k in "RU"
    }
    for name, change in moved.items():
        assert found[name]["music"]["judge/sounding"]["change"]["mean"] == pytest.approx(
            change.nanmean().item()
        )
    # R is trained on adherence and quality, whose marks are 1 to 5, U on the preference alone.
    gained = {
        k: columns[k]["column:reward/preference"] - columns["base"]["column:reward/preference"]
        for k in "RU"
    }
    assert found["U"]["reward"]["change"]["mean"] == pytest.approx(gained["U"].mean().item())
    terms = {
        term: columns["R"][f"column:reward/{term}"] - columns["base"][f"column:reward/{term}"]
        for term in ("text", "quality")
    }
    wanted = (terms["text"] + terms["quality"] / 4).mean().item()
    assert found["R"]["reward"]["change"]["mean"] == pytest.approx(wanted)
    assert found["base, other clips"]["reward"] is None
    text, page = ((done.config.out / file).read_text() for file in ("report.md", "report.html"))
    failed = [name for name, row in found.items() if row["reward_rose_while_music_fell"]]
    verdict = f"FAILED: rewards rose while figures of music fell by more than their intervals: {', '.join(failed)}."
    said = verdict if failed else "No model's reward rose while"
    assert said in text
    assert html.escape(said) in page
    for name, row in found.items():
        said = f"{name}: no reward" if row["reward"] is None else f"{name}: "
        assert f"- {said}" in text
        assert f"<li>{said}" in page
        assert ("music FELL" in text.split(f"- {name}: ")[1].split("\n")[0]) == bool(row["worse"])


def test_judges_of_today_hear_what_was_measured_before(
    done: Done, quietly: Reproduce, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done.config.out, tmp_path / "out"))
    path = out / "seed0/measured/R.safetensors"
    tensors, config = load_tensors(path, kind="measurement")
    judges = ["sounding", "embedding", *(["stable-pitch"] if has_tracker() else [])]
    heard = {f"column:judge/{name}": tensors.pop(f"column:judge/{name}") for name in judges}
    assert all(scores.isfinite().all() for scores in heard.values())
    save_tensors(path, tensors, kind="measurement", config=config)
    trainer = Trainer()
    quietly(replace(done.config, out=out), trainer)
    assert trainer.runs == []
    again, _ = load_tensors(path, kind="measurement")
    for name, scores in heard.items():
        torch.testing.assert_close(again[name], scores, atol=1e-5, rtol=1e-5)


def test_what_is_done_is_not_done_again(done: Done, quietly: Reproduce) -> None:
    trainer = Trainer()
    assert quietly(done.config, trainer) == done.report
    assert trainer.runs == []


def test_a_killed_run_goes_on_and_ends_the_same(
    done: Done, small: Small, quietly: Reproduce, tmp_path: Path
) -> None:
    def killed(config: TrainConfig) -> dict[str, Any]:
        """Dies after four of the five updates: checkpoints, but no summary."""
        settings = {field.name: getattr(config, field.name) for field in fields(config)}
        solo(TrainConfig(**{**settings, "iterations": 4}))
        (config.out / "summary.json").unlink()
        raise RuntimeError("killed")

    config = small(tmp_path, models=["R"])
    with pytest.raises(RuntimeError, match="killed"):
        quietly(config, killed)
    trainer = Trainer()
    quietly(config, trainer)
    assert [run.resume for run in trainer.runs] == [True]
    measured = Path("seed0/measured/R.safetensors")
    killed_once, straight = (
        load_tensors(out / measured, kind="measurement") for out in (tmp_path, done.config.out)
    )
    assert killed_once[1] == straight[1]
    for name, tensor in straight[0].items():
        torch.testing.assert_close(killed_once[0][name], tensor, rtol=0, atol=0, equal_nan=True)


def test_other_settings_keep_what_they_do_not_decide(
    done: Done, small: Small, quietly: Reproduce
) -> None:
    trainer = Trainer()
    with pytest.raises(ValueError, match="model R of other settings"):
        quietly(small(done.config.out, models=["R"], scale={"updates": 6}), trainer)
    report = quietly(small(done.config.out, models=["R"], prompts=3), trainer)
    assert trainer.runs == []
    assert report["models"][0]["rewards"]["text"]["count"] == 3


def test_a_world_that_sounds_otherwise_is_another(small: Small, tmp_path: Path) -> None:
    config = small(tmp_path / "out", models=["R"])
    assert config.weights is not None
    shutil.copytree(config.weights, tmp_path / "world")
    other = small(tmp_path / "out", models=["R"], weights=str(tmp_path / "world"))
    (here,), (there,) = (seeds_of(each, print) for each in (config, other))
    assert here.digest_of_run(here.settings("R")) == there.digest_of_run(there.settings("R"))
    with (tmp_path / "world" / "codec.safetensors").open("ab") as file:
        file.write(b" ")
    assert here.digest_of_run(here.settings("R")) != there.digest_of_run(there.settings("R"))


def test_an_interrupted_run_is_not_taken_for_done(
    small: Small, quietly: Reproduce, tmp_path: Path
) -> None:
    def stopped(config: TrainConfig) -> dict[str, Any]:
        return {"finished": False, "stopped_by": None, "iterations": 1}

    config = small(tmp_path, models=["R"])
    with pytest.raises(KeyboardInterrupt):
        quietly(config, stopped)
    with pytest.raises(KeyboardInterrupt):  # it is begun again, not skipped
        quietly(config, stopped)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": ["RU"]}, "RU starts from R"),
        ({"models": ["R", "Ru"]}, "no recipe 'Ru'"),
        ({"models": ["R", "R"]}, "R twice"),
        ({"models": []}, "models names none"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"budget_minutes": 3}, "give one of them"),
        ({"audio_prompts": 5}, "audio_prompts"),
        ({"panel": {"raters_per_pair": 21}}, "raters_per_pair"),
    ],
)
def test_contradictions_are_refused(
    small: Small, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        small(tmp_path, **settings)


def test_what_a_budget_affords_by_hand() -> None:
    # An update of R and U costs 4 + 6 s, a fifth of one of RU 1 s: 11 s; 120 s are left of 180.
    assert affordable_updates(180, update={1.0: 10.0, 0.2: 5.0}, measuring=60) == 10
    with pytest.raises(ValueError, match="too little"):
        affordable_updates(70, update={1.0: 10.0, 0.2: 5.0}, measuring=60)


def test_a_budget_is_planned_once(small: Small, tmp_path: Path) -> None:
    said: list[str] = []
    config = small(tmp_path, models=["R"], budget_minutes=10.0, scale={"updates": None})
    first = planned(config, said.append)
    assert first.scale.updates is not None
    assert planned(config, said.append) == first  # a second timing would not be the same
    assert said.count("timing a few updates of every model") == 1
    other = small(tmp_path, models=["R"], budget_minutes=20.0, scale={"updates": None})
    with pytest.raises(ValueError, match="other settings"):
        planned(other, said.append)
