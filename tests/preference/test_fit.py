"""Fitting a preference model: what is learned, resumed, streamed, refused and compared."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.cli import EXIT_FAULT, main
from musicrl.policies.preference import PreferenceModel
from musicrl.preference import training
from musicrl.preference.dataset import write_comparisons
from musicrl.preference.fit import CEILING, FitConfig, fit, load_material, starting_model
from musicrl.preference.inputs import distinct_clips
from musicrl.preference.pairs import SelectionConfig, batches, load_pairs, prompt_batches
from musicrl.preference.training import Fitted, TrainingConfig, train
from musicrl.rewards.mos import MosConfig, MosPredictor
from musicrl.types import Comparison
from musicrl.world import World
from tests.preference.planted import planted, write_planted
from tests.preference.playable import token_clip

QUICK = TrainingConfig(steps=300, learning_rate=1e-2, evaluate_every=100)


@pytest.fixture(scope="module")
def world(tiny_world: Path) -> World:
    return World.load(tiny_world)


@pytest.fixture(scope="module")
def file(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return write_planted(folder / "planted.parquet", 1500, world.layout)


def configured(file: Path, world: Path, out: Path, **settings: object) -> FitConfig:
    made = FitConfig(
        files=(file,),
        out=out,
        weights=world,
        selection=SelectionConfig(heldout=0.2),
        training=QUICK,
    )
    return replace(made, **settings)  # type: ignore[arg-type]


def test_a_planted_rule_is_learned(file: Path, tiny_world: Path, tmp_path: Path) -> None:
    """More of one token wins, whatever the other streams hold."""
    simulation = tmp_path / "simulated.json"
    simulation.write_text(json.dumps({CEILING: 0.75}))
    flags = f"--weights {tiny_world} --out {tmp_path / 'out'} --selection.heldout 0.2"
    flags += " --training.steps 300 --training.learning-rate 1e-2 --training.evaluate-every 100"
    flags += f" --simulation {simulation} --json {tmp_path / 'fit.json'}"
    assert main(["fit-reward", str(file), *flags.split()]) == 0
    report = json.loads((tmp_path / "fit.json").read_text())
    assert report["accuracy"] > 0.93
    assert report["log-loss"] < 0.2
    assert report["standard error"] < 0.03
    assert report["ceiling"] == 0.75
    assert report["raters"] == "people"
    held = report["comparisons held out"]
    assert sum(bin["count"] for bin in report["reliability"]) == held
    _, facts = PreferenceModel.from_file(tmp_path / "out" / "preference.safetensors")
    assert facts["accuracy"] == report["accuracy"]
    assert facts["newest"] == "2024-02-06T00:24:59+00:00"
    assert facts["origin"].startswith("policy@")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "preference.safetensors",
        "tensorboard",
    }


def test_scores_of_the_file_foretell_the_choices(
    file: Path, tiny_world: Path, tmp_path: Path, world: World
) -> None:
    fit(configured(file, tiny_world, tmp_path / "out"))
    model, _ = PreferenceModel.from_file(tmp_path / "out" / "preference.safetensors")
    right = 0
    for number in range(5000, 5100):  # of no file
        row = planted(number, world.layout)
        both = torch.from_numpy(np.stack([row.clip_a.tokens, row.clip_b.tokens]).astype(np.int64))
        first, second = model(both, world.conditioner([row.prompt.text] * 2)).tolist()
        right += (first > second) == (row.choice == "a")
    assert right > 90


def test_resume_is_what_was_never_interrupted(
    file: Path, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, steps=60, evaluate_every=20, patience=0)
    whole = configured(file, tiny_world, tmp_path / "whole", training=config)
    fit(whole)
    update, steps = training._update, iter(range(60))

    def killed(*args: object) -> float:
        if next(steps) == 47:  # eight steps after the last checkpoint
            raise KeyboardInterrupt
        return update(*args)  # type: ignore[arg-type]

    broken = replace(whole, out=tmp_path / "broken")
    monkeypatch.setattr(training, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(broken)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="a fit with other settings"):
        fit(replace(broken, training=replace(config, learning_rate=1e-3)))
    fit(broken)
    left, right = (
        PreferenceModel.from_file(run.out / "preference.safetensors") for run in (whole, broken)
    )
    assert left[1] == right[1]
    for name, tensor in left[0].state_dict().items():
        assert torch.equal(tensor, right[0].state_dict()[name]), name


def test_ablations_that_were_made_are_not_made_again(
    file: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_world: Path
) -> None:
    """Interrupted after its last step, training comes back to the same figures without one."""
    config = configured(file, tiny_world, tmp_path)
    material = load_material(config)
    brief = replace(QUICK, steps=20, evaluate_every=10)

    def run() -> Fitted:
        model = starting_model(config, world)
        return train(model, material.inputs, brief, tmp_path, name="test")

    first = run()
    monkeypatch.setattr(training, "_update", None)
    again = run()
    assert again.prediction == first.prediction
    assert (again.step, again.steps) == (first.step, 20)


def test_it_stops_when_the_held_out_loss_rises_and_keeps_the_best(
    file: Path, tiny_world: Path, tmp_path: Path
) -> None:
    """At such a rate it gets worse at once; the best of the measurements comes out."""
    config = TrainingConfig(steps=500, learning_rate=3.0, evaluate_every=5, patience=2)
    report = fit(configured(file, tiny_world, tmp_path, training=config))
    assert report["steps"] < 500
    assert report["steps"] == report["best step"] + 2 * 5


def test_memory_is_bounded_by_the_batch(world: World, tmp_path: Path) -> None:
    """24 MB of tokens pass through a peak of a few; what stays is some bytes a pair."""
    row = planted(0, world.layout)
    long = np.tile(row.clip_a.tokens, (300, 1))  # 1,200 steps
    rows = (
        replace(
            planted(i, world.layout),
            clip_a=replace(row.clip_a, tokens=long),
            clip_b=replace(row.clip_b, tokens=long),
        )
        for i in range(1000)
    )
    write_comparisons(tmp_path / "long.parquet", rows)
    spool = tmp_path / "tokens.bin"
    tracemalloc.start()
    pairs = load_pairs([tmp_path / "long.parquet"], spool, world.layout, SelectionConfig())
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spool.stat().st_size == 1000 * 2 * 1200 * 5 * 2
    assert left < 1_000_000
    assert isinstance(pairs.tokens, np.memmap)
    np.testing.assert_array_equal(pairs.tokens[999, 1], long)


def test_what_is_selected(world: World, tmp_path: Path) -> None:
    def rows() -> Iterable[Comparison]:
        for number in range(40):
            row = planted(number, world.layout)
            if number % 4 == 0:
                row = replace(row, choice="none")
            if number % 4 == 1:
                row = replace(row, heard_a=0.0)
            yield row

    write_comparisons(tmp_path / "rows.parquet", rows())

    def load(**settings: object) -> dict[str, int]:
        config = SelectionConfig(**settings)  # type: ignore[arg-type]
        pairs = load_pairs(
            [tmp_path / "rows.parquet"], tmp_path / "tokens.bin", world.layout, config
        )
        assert len(pairs.texts) == len(pairs.first_wins)
        return {"used": len(pairs.first_wins), **pairs.dropped}

    assert load() == {"used": 20, "without a trophy": 10, "not heard": 10}
    assert load(minimum_heard=0.6) == {"used": 0, "without a trophy": 10, "not heard": 30}
    assert load(listener="rater-0") == {
        "used": 10,
        "without a trophy": 10,
        "of another listener": 20,
    }
    late = load(after="2024-02-06T00:00:29")  # of 0..39 s
    assert late == {"used": 6, "without a trophy": 2, "not heard": 2, "too old": 30}


@pytest.mark.parametrize("by", ["prompt", "rater"])
def test_groups_stay_whole(file: Path, world: World, tmp_path: Path, by: str) -> None:
    config = SelectionConfig(by=by, heldout=0.5, seed=3)  # type: ignore[arg-type]
    pairs = load_pairs([file], tmp_path / "tokens.bin", world.layout, config)
    numbers = np.arange(1500) % (40 if by == "prompt" else 2)
    held, learned = numbers[pairs.is_heldout], numbers[~pairs.is_heldout]
    assert not set(held.tolist()) & set(learned.tolist())
    assert len(held) + len(learned) == 1500


def test_every_pair_is_drawn_once_an_epoch() -> None:
    drawn = batches(np.arange(100, 110), 5, seed=1)
    first, second = (np.concatenate([next(drawn), next(drawn)]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(100, 110))
    assert first.tolist() != second.tolist()
    prompt = np.array([0, 1, 0, 2, 1, 0], np.int32)
    groups = prompt_batches(np.array([0, 1, 2, 4, 5]), prompt, 1, seed=0)
    assert sorted(sorted(next(groups).tolist()) for _ in range(2)) == [[0, 2, 5], [1, 4]]


def test_a_clip_of_many_pairs_is_scored_once(world: World, tmp_path: Path) -> None:
    first, second, third = (planted(n, world.layout).clip_a for n in range(3))
    base = planted(0, world.layout)
    rows = [
        replace(base, id=f"pair-{n}", clip_a=a, clip_b=b)
        for n, (a, b) in enumerate([(first, second), (second, third), (third, first)])
    ]
    write_comparisons(tmp_path / "rows.parquet", rows)
    pairs = load_pairs(
        [tmp_path / "rows.parquet"], tmp_path / "tokens.bin", world.layout, SelectionConfig()
    )
    clips, place = distinct_clips(pairs, np.arange(3))
    assert clips.tolist() == [[0, 0], [0, 1], [1, 1]]
    assert place.tolist() == [[0, 1], [1, 2], [2, 0]]


def test_whole_prompts_are_learned_from_as_pairs_are(
    file: Path, tiny_world: Path, tmp_path: Path
) -> None:
    config = configured(file, tiny_world, tmp_path)
    material = load_material(config)
    options = replace(QUICK, steps=200, batch_prompts=2)
    model = starting_model(config, material.world)
    fitted = train(model, material.inputs, options, tmp_path, name="test")
    assert fitted.prediction.accuracy > 0.9


def test_a_model_is_continued_from(file: Path, tiny_world: Path, tmp_path: Path) -> None:
    fit(configured(file, tiny_world, tmp_path / "first"))
    start = tmp_path / "first" / "preference.safetensors"
    few = replace(QUICK, steps=1, learning_rate=1e-6)
    report = fit(configured(file, tiny_world, tmp_path / "second", start=start, training=few))
    assert report["accuracy"] > 0.93
    assert report["origin"] == "preference.safetensors"
    with pytest.raises(ValueError, match="layers do not go with it"):
        FitConfig(start=start, layers=1)


def test_faults_are_one_sentence(
    file: Path, tiny_world: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = planted(0, world.layout)
    tokens = odd.clip_a.tokens.copy()
    tokens[1, 2] = 12
    faulty = {
        "longer": replace(odd, clip_b=planted(1, world.layout, steps=3).clip_b),
        "outside": replace(odd, clip_a=replace(odd.clip_a, tokens=tokens)),
        "streams": replace(odd, clip_a=token_clip(0), clip_b=token_clip(1)),
        "few": odd,
    }
    words = {
        "longer": "comparison pair-0: a grid of 3 x 5 steps and streams, expected 4 x 5",
        "outside": "holds token 12 in stream coarse2.0 of 12 tokens",
        "streams": "a grid of 4 x 2 steps and streams, expected 4 x 5",
        "few": "too few comparisons: ",
    }
    for name, row in faulty.items():
        write_comparisons(tmp_path / f"{name}.parquet", [row])
        refused = ["fit-reward", str(tmp_path / f"{name}.parquet"), "--weights", str(tiny_world)]
        assert main([*refused, "--out", str(tmp_path / "out")]) == EXIT_FAULT
        said = capsys.readouterr().err
        assert words[name] in said
        assert "\n" not in said.strip()
    assert main(["fit-reward"]) == EXIT_FAULT
    assert "fit-reward needs files" in capsys.readouterr().err
    assert main(["fit-reward", str(file), "--selection.after", "soon"]) == EXIT_FAULT
    assert "after must be a time in ISO 8601, got 'soon'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        refused = ["fit-reward", str(file), "--weights", str(tiny_world), "--training.gpus", "1"]
        assert main([*refused, "--out", str(tmp_path / "gpu")]) == EXIT_FAULT
        assert "1 GPUs are asked for, but torch finds none" in capsys.readouterr().err


def test_the_ablations_stand_in_one_table(
    tiny_world: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rule needs the whole clip, and no text: the first quarter of it foretells little."""
    folder = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    MosPredictor(MosConfig(width=8, num_blocks=1)).save(folder / "quality.safetensors")
    file = write_planted(tmp_path / "planted.parquet", 600, world.layout)
    short = replace(QUICK, steps=100, evaluate_every=50)
    report = fit(configured(file, folder, tmp_path / "out", ablations=True, training=short))
    rows = report["ablations"]
    assert list(rows) == [
        "full",
        "no text",
        "first half of the clips",
        "first quarter of the clips",
        "from scratch",
        "higher text reward wins",
        "higher quality reward wins",
    ]
    accuracy = {name: row["accuracy"] for name, row in rows.items()}
    assert accuracy["full"] == report["accuracy"]
    assert accuracy["no text"] > 0.85
    assert accuracy["first quarter of the clips"] < accuracy["full"] - 0.1
    assert 0.3 < accuracy["higher quality reward wins"] < 0.7
    held = report["comparisons held out"]
    assert {row["comparisons"] for name, row in rows.items() if "reward" not in name} == {held}
    assert "first half of the clips" in capsys.readouterr().out
