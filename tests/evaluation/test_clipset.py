"""Numbers of sets of clips, from arrays by hand and by the command on a rendered world."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from cluster.commands.evaluate import evaluate
from musicrl.evaluation.clipset import ClipSet, distances, join, set_figures
from musicrl.evaluation.distance import frechet
from musicrl.evaluation.judges import load_ears
from musicrl.evaluation.reference import RealClips, fit, measure_references, reconstruct
from musicrl.pretrain.real import real_clips
from musicrl.types import Clips, Prompt
from musicrl.world import World

RATE = 16_000


def clip_set(rows: np.ndarray, **fields: Any) -> ClipSet:
    columns = {"silent": np.zeros(len(rows))}
    return ClipSet(embeddings={"e": rows.astype(np.float64)}, columns=columns, **fields)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split of a world: 14 clips of noise bursts and tones, 0.5 s each."""
    folder = tmp_path_factory.mktemp("rendered")
    rng, seconds = np.random.default_rng(0), np.arange(RATE // 2) / RATE
    tones = np.sin(2 * np.pi * rng.uniform(200, 1500, (14, 1)) * seconds)
    audio = 0.3 * tones + rng.normal(0, 0.02, (14, RATE // 2))
    (folder / "audio-test").mkdir()
    np.save(folder / "audio-test" / "00000.npy", (audio * 32767).astype(np.int16))
    names = ("instrument", "tempo", "texture", "genre", "loudness", "mode")
    plan = pyarrow.table({name: ["x"] * 14 for name in names})
    pyarrow.parquet.write_table(plan, folder / "excerpts-test.parquet")
    (folder / "world.json").write_text(json.dumps({"sample_rate": RATE}))
    return folder


def sets_of(path: Path) -> tuple[str | None, Mapping[str, Any]]:
    found = json.loads(path.read_text())["sets"]
    return found["reference"], found["rows"]


def test_distances_leave_out_what_is_not_finite() -> None:
    rng = np.random.default_rng(1)
    reference, rows = rng.normal(size=(2, 9, 3))
    broken = rows.copy()
    broken[4, 1] = np.nan
    found = distances(clip_set(reference), clip_set(broken))
    assert found["frechet/e"] == frechet(reference, np.delete(rows, 4, axis=0))
    assert found["kernel/e"].clips == 8
    with pytest.raises(ValueError, match="two clips or more a side, got 1 and 1"):
        distances(clip_set(reference), clip_set(np.where(np.arange(9)[:, None] < 1, rows, np.nan)))


def test_figures_of_a_set_joined_from_parts() -> None:
    tokens = np.array([[[0, 5], [0, 6]], [[1, 5], [1, 6]]], np.int16)
    vectors = np.eye(2)
    parts = [
        clip_set(vectors[i : i + 1], tokens=tokens[i : i + 1], texts=("a tune",)) for i in (0, 1)
    ]
    whole = join(parts)
    found = set_figures(whole, whole, ("first", "second"))
    assert (found.clips, found.distances) == (2, {})
    assert {name: figure.mean for name, figure in found.diversity.items()} == {
        "spread/e": 1.0,
        "spread-within/e": 1.0,  # both clips are of one text
        "silent": 0.0,
        "distinct-1/first": 0.5,
        "distinct-1/second": 0.5,
        "distinct-2/first": 1.0,
        "distinct-2/second": 0.5,
        "token-entropy/first": pytest.approx(np.log(2)),
        "token-entropy/second": pytest.approx(np.log(2)),
    }


def test_evaluate_measures_sets_against_real_clips(
    tiny_world: Path, rendered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.json"
    words = ["policy-noisy.safetensors", "--weights", str(tiny_world), "--world", str(rendered)]
    evaluate([*words, "--prompts", "3", "--json", str(out)])
    assert "distances are to the real clips" in capsys.readouterr().out
    reference, rows = sets_of(out)
    assert reference == "real"
    assert list(rows) == ["real", "reconstruction", "base", "policy-noisy.safetensors"]
    report = json.loads(out.read_text())
    assert report["bars"]["reconstruction"]["distance-ratio"]["mean"] == 1
    assert report["bars"]["base"]["distance-ratio"]["mean"] > 1
    assert "no semantic.safetensors" in report["left_out"]["caption-gap"]
    kinds = {f"{m}/{e}" for m in ("frechet", "kernel") for e in ("tagger", "judge")}
    for row in rows.values():
        assert row["distances"].keys() == kinds
        assert {found["clips"] for found in row["distances"].values()} == {3}
    assert rows["base"] == rows["policy-noisy.safetensors"]  # the fixture's two files are alike
    assert rows["base"]["diversity"].keys() > rows["real"]["diversity"].keys()
    world, ears = World.load(tiny_world), load_ears(tiny_world)
    real = fit(real_clips(rendered, 6).clips, world)
    first, second = (Clips(audio=real.audio[i : i + 3], sample_rate=RATE) for i in (0, 3))
    for name, clips in {"real": second, "reconstruction": reconstruct(second, world)}.items():
        slow = frechet(ears.embed(first)["judge"], ears.embed(clips)["judge"])
        assert rows[name]["distances"]["frechet/judge"]["value"] == pytest.approx(slow.value)


def test_without_a_world_distances_are_to_a_given_base(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, policy = tmp_path / "e.json", "policy-noisy.safetensors"
    words = ["--weights", str(tiny_world), "--prompts", "3", "--json", str(out)]
    evaluate([policy, *words])
    reference, rows = sets_of(out)
    assert (reference, rows[policy]["distances"]) == (None, {})
    assert "no distances: they are to the real clips" in capsys.readouterr().out
    evaluate([policy, *words, "--base", "policy.safetensors"])
    reference, rows = sets_of(out)
    assert (reference, rows["base"]["distances"]) == ("base", {})
    assert rows[policy]["distances"]["frechet/judge"]["value"] == pytest.approx(0, abs=1e-9)


def test_a_reconstruction_has_the_levels_that_the_policy_writes() -> None:
    """The shipped policy writes 4 levels; its codec knows 6."""
    world = World.load()
    audio = np.random.default_rng(2).normal(0, 0.1, (2, 6 * RATE)).astype(np.float32)
    codes = world.codec.encode(torch.tensor(audio))
    found = reconstruct(Clips(audio=audio, sample_rate=RATE), world).audio
    np.testing.assert_array_equal(found, world.codec.decode(codes[:, :4]).numpy())
    assert np.abs(found - world.codec.decode(codes).numpy()).max() > 0.01


def test_real_clips_that_do_not_serve_are_refused(tiny_world: Path, rendered: Path) -> None:
    world, ears = World.load(tiny_world), load_ears(tiny_world)
    short = Clips(audio=np.zeros((8, 1_600), np.float32), sample_rate=RATE)
    real = RealClips(clips=short, prompts=(Prompt(id="a", text="a"),) * 8)
    with pytest.raises(ValueError, match=r"clips are of 0\.1 s, those of the policy of 0\.4 s"):
        measure_references(real, world, ears, size=4)
    with pytest.raises(ValueError, match="four real clips or more, got 3"):
        measure_references(real_clips(rendered, 3), world, ears, size=4)
    with pytest.raises(FileNotFoundError, match="no test clips in"):
        real_clips(tiny_world, 3)
