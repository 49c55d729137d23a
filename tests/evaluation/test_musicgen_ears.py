"""Who judges a MusicGen world, by what its folder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cluster.commands.evaluate import evaluate
from musicrl.codecs.huggingface import HuggingFaceCodec
from musicrl.embedders.clap import Clap
from musicrl.evaluation.judges import CALIBRATION, write_calibration
from musicrl.evaluation.musicgen_ears import musicgen_ears
from musicrl.evaluation.reference import RealClips, measure_references
from musicrl.types import Clips, Prompt
from musicrl.worlds import load_world
from tests.small_musicgen import RATE, sounds_of


@pytest.fixture
def folder(musicgen_world: Path, tmp_path: Path) -> Path:
    """A world whose world.yaml can be written anew."""
    for name in ("musicgen", "clap", "judge", "prompts.parquet"):
        (tmp_path / name).symlink_to(musicgen_world / name)
    (tmp_path / "world.yaml").write_text((musicgen_world / "world.yaml").read_text())
    return tmp_path


@pytest.fixture(scope="module")
def clips(musicgen_world: Path) -> Clips:
    """Four clips of random codes."""
    audio = sounds_of(HuggingFaceCodec.from_musicgen(musicgen_world / "musicgen"))[:4]
    return Clips(audio=audio.numpy(), sample_rate=RATE)


def name_judge(folder: Path, reference: str) -> None:
    with (folder / "world.yaml").open("a") as file:
        file.write(f"judge: {reference}\n")


def test_without_a_judge_the_tagger_embeds_and_needs_no_calibration(
    folder: Path, clips: Clips
) -> None:
    ears = musicgen_ears(folder)
    assert [judge.name for judge in ears.judges] == [
        "onset-tempo",
        "pitch-variety",
        "sounding",
        "clipping",
    ]
    assert ears.left_out.keys() == {"judge/embedding", "judge/tagger"}
    (vectors,) = ears.embed(clips).values()
    assert np.isfinite(vectors).all()
    assert np.linalg.matrix_rank(vectors - vectors.mean(0)) == 3  # clips are told apart


def test_a_named_judge_scores_and_embeds_as_that_clap_does(folder: Path, clips: Clips) -> None:
    name_judge(folder, "path:judge")
    ears, judge = musicgen_ears(folder), Clap.from_folder(folder / "judge")
    assert ears.left_out.keys() == {"judge/tagger"}
    prompts = [Prompt(id="1", text="slow piano")] * len(clips.audio)
    sounds = judge.embed_audio(torch.from_numpy(clips.audio))
    cosines = sounds @ judge.embed_text(["slow piano"])[0]
    assert ears.judges[0].name == "embedding"
    np.testing.assert_allclose(ears.judges[0](prompts, clips), cosines.numpy(), atol=1e-6)
    np.testing.assert_allclose(ears.embed(clips)["judge"], F.normalize(sounds), atol=1e-6)
    rewarded = load_world(folder).embedder.embed_audio(torch.from_numpy(clips.audio))
    assert not torch.allclose(rewarded, sounds, atol=0.01)


def test_the_embedder_of_the_reward_is_no_judge(folder: Path) -> None:
    name_judge(folder, "path:clap")
    with pytest.raises(ValueError, match=r"judge 'path:clap' is the embedder of the reward"):
        musicgen_ears(folder)


def test_a_calibration_gives_the_tagger_opinions(folder: Path) -> None:
    write_calibration(folder / CALIBRATION, np.full(50, -3.0), np.full(50, 1.5), clips=1)
    names = [judge.name for judge in musicgen_ears(folder).judges]
    assert names[:2] == ["tagger", "tagger-instrument"]


def test_real_clips_are_what_distances_are_to(folder: Path, clips: Clips) -> None:
    world = load_world(folder)
    real = RealClips(clips=clips, prompts=(Prompt(id="a", text="a"), Prompt(id="b", text="b")) * 2)
    found = measure_references(real, world, musicgen_ears(folder), size=2)
    assert found.first.num_clips == 2
    assert list(found.codec) == ["2 levels"]  # the policy writes all that the codec knows
    embedded = {name: rows.embeddings["tagger"] for name, rows in found.beside.items()}
    assert embedded.keys() == {"real", "reconstruction"}
    assert not np.allclose(embedded["real"], embedded["reconstruction"])


def test_the_command_finds_the_family(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--weights", str(folder), "--prompts", "2", "--best-of", "[2]"]
    evaluate([*words, "--out", str(tmp_path / "out")])
    screen = capsys.readouterr().out
    assert "left out: judge/embedding" in screen
    assert "base, best of 2" in (tmp_path / "out" / "report.md").read_text()
