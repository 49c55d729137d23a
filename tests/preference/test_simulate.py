from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import EXIT_FAULT, main
from musicrl.audio import read_wav, write_wav
from musicrl.preference.dataset import read_comparisons
from musicrl.preference.pool import POOL_STEP, hear_pool, read_pool
from musicrl.preference.simulate import SimulateConfig, make_terms, score_clips
from musicrl.rewards.text import TextAdherence
from musicrl.rollout import RolloutWorker
from musicrl.sampler.sampling import SamplingConfig
from musicrl.settings import build
from musicrl.types import Clips, Comparison
from musicrl.world import World

UTILITY = ["--rater.taste", "0.5", "--rater.raters", "6", "--rater.weights.text", "1.0"]
UTILITY += [f"--rater.weights.{name}=0" for name in ("quality", "pitch-variety", "sounding")]


def clip_flags(world: Path, *, chunk: int = 3) -> list[str]:
    sizes = f"--clips.prompts 5 --clips.clips-per-prompt 3 --clips.prompts-per-chunk {chunk}"
    return ["--clips.weights", str(world), *sizes.split()]


@pytest.fixture(scope="module")
def pool(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pools") / "pool"
    policies = ["--clips.policies", "[policy-noisy.safetensors, policy.safetensors]"]
    args = ["prefs", "pool", "--out", str(folder), *clip_flags(tiny_world), *policies]
    assert main(args) == 0
    return folder


def simulated(out: Path, *flags: str) -> list[Comparison]:
    assert main(["prefs", "simulate", "--out", str(out), *UTILITY, *flags]) == 0
    return [row for batch in read_comparisons([out]) for row in batch]


def test_a_pool_holds_what_the_worker_samples(pool: Path, tiny_world: Path) -> None:
    clips = read_pool(pool)
    assert len(clips) == 2 * 5 * 3
    assert len({clip.clip.policy for clip in clips}) == 2
    worker = RolloutWorker(World.load(tiny_world), SamplingConfig())
    second = clips[15:]  # of the second policy: random numbers of the step before
    for place in range(5):
        rollouts, audio = worker.generate(
            [second[3 * place].prompt],
            first_prompt_index=place,
            step=POOL_STEP - 1,
            run_seed=0,
            samples_per_prompt=3,
            version=0,
        )
        for clip, tokens, sound, seed in zip(
            second[3 * place :][:3], rollouts.tokens, audio.audio, rollouts.seeds, strict=False
        ):
            assert np.array_equal(clip.clip.tokens, tokens)
            assert clip.seed == int(seed)
            assert read_wav(pool / clip.wav) == pytest.approx(np.clip(sound, -1, 1), abs=2e-4)
            assert clip.seconds == sound.size / audio.sample_rate


def test_names_of_files_tell_nothing_of_the_policy(pool: Path) -> None:
    for clip in read_pool(pool):
        assert clip.wav == f"{clip.clip.id}.wav"
        assert "policy" not in clip.wav


def test_a_pool_is_not_sampled_over_another(
    pool: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prefs", "pool", "--out", str(pool), *clip_flags(tiny_world)]) == EXIT_FAULT
    assert f"{pool} already holds a pool" in capsys.readouterr().err


def test_a_pool_that_lacks_a_wav_is_refused(pool: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pool, tmp_path / "pool")
    missing = read_pool(copy)[7].wav
    (copy / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"the pool lacks {copy / missing}"):
        read_pool(copy)


def test_a_pool_of_clips_of_two_lengths_is_refused(pool: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pool, tmp_path / "pool")
    clips = read_pool(copy)
    write_wav(copy / clips[3].wav, np.zeros(100, np.float32), 16000)
    with pytest.raises(ValueError, match=f"{copy / clips[3].wav} has 100 samples, not 6400"):
        list(hear_pool(copy, clips, 16000))


def test_all_that_is_simulated_says_so(tiny_world: Path, pool: Path, tmp_path: Path) -> None:
    flags = ["--pool", str(pool), "--clips.weights", str(tiny_world), "--pairs", "200"]
    rows = simulated(tmp_path / "simulated.parquet", *flags)
    assert len(rows) == 200
    assert all(row.simulated and row.rater.startswith("simulated-") for row in rows)
    assert {row.time.timestamp() for row in rows} == {0.0}
    clips = {clip.clip.id: clip for clip in read_pool(pool)}
    for row in rows:
        assert row.clip_a.id != row.clip_b.id
        for side in (row.clip_a, row.clip_b):
            assert clips[side.id].prompt.text == row.prompt.text
            assert np.array_equal(clips[side.id].clip.tokens, side.tokens)
    with pytest.raises(ValueError, match="out must be a name that contains 'simulated'"):
        build(SimulateConfig, {"out": "pairs.parquet"}, origin="test")


def test_the_seed_decides_and_the_batches_do_not(tiny_world: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"simulated-{name}.parquet" for name in "abc"]
    for out, seed, chunk in zip(outs, (0, 0, 1), (3, 2, 3), strict=True):
        simulated(out, *clip_flags(tiny_world, chunk=chunk), "--seed", str(seed), "--pairs", "100")
    first, again, other = (out.read_bytes() for out in outs)
    assert first == again
    assert first != other


def test_terms_are_the_rewards_of_what_is_heard(tiny_world: Path, pool: Path) -> None:
    tree = {"pool": str(pool), "clips": {"weights": str(tiny_world)}}
    weights = {"rater": {"weights": {"text": 1.0, "sounding": 0.5}}}
    scored = score_clips(build(SimulateConfig, {**tree, **weights}, origin="test"))
    world = World.load(tiny_world)
    text = TextAdherence(world.embedder)
    for clip, score, number in zip(scored.clips, scored.terms["text"], scored.prompts, strict=True):
        audio = Clips(audio=read_wav(pool / clip.wav)[None], sample_rate=world.sample_rate)
        assert score == pytest.approx(text([clip.prompt], audio)[0], abs=1e-5)
        assert scored.clips[int(np.argmax(scored.prompts == number))].prompt == clip.prompt
    eighths = 8 * scored.terms["sounding"]  # a clip of 0.4 s has eight frames
    assert np.array_equal(eighths, eighths.round())
    assert len(set(eighths.tolist())) > 1


def test_the_figures_are_those_of_the_file(
    tiny_world: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, out = tmp_path / "simulated.json", tmp_path / "simulated.parquet"
    flags = ["--pool", str(pool), "--clips.weights", str(tiny_world), "--pairs", "4000"]
    rows = simulated(out, *flags, "--json", str(report))
    figures = json.loads(report.read_text())
    assert figures["simulated"] is True
    assert figures["agreement of two simulated raters, expected"] == pytest.approx(0.6, abs=0.02)
    assert figures["agreement of two simulated raters, drawn"] == pytest.approx(0.6, abs=0.05)
    assert figures["the first clip won"] == np.mean([row.choice == "a" for row in rows])
    shared = (
        figures["better clip won, by term"] if False else figures["the better clip won, by term"]
    )
    ceiling = figures["ceiling accuracy, knowing the shared utility"]
    assert shared["text"] == ceiling > 0.55  # text is all that they share
    printed = capsys.readouterr().out
    assert "simulated preferences" in printed
    assert f"{ceiling:.3f}" in printed


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--pool", "no/pool"], "no file of preferences at no/pool/pool.parquet"),
        (["--pairs", "0"], "command line: pairs must be 1 or more, got 0"),
        (["--rater.weights.txt", "1.0"], "unknown reward 'txt' (nearest: text)"),
        (["--clips.prompts", "99999"], "prompts is 99999, but"),
        (["--out", "pairs.parquet"], "out must be a name that contains 'simulated'"),
    ],
)
def test_one_sentence(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefs", "simulate", *flags]) == EXIT_FAULT
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_a_term_that_nobody_likes_needs_no_model(tiny_world: Path) -> None:
    world = World.load(tiny_world)
    assert make_terms({"text": 1.0, "quality": 0.0}, world).keys() == {"text"}
    with pytest.raises(
        FileNotFoundError, match=r"no quality.safetensors.*told --rater.weights.quality 0"
    ):
        make_terms({"text": 1.0, "quality": 0.1}, world)
