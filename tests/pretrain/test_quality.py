"""The quality stage for real on a few clips, its figures by hand, and ratings that do not fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from musicrl.audio import write_wav
from musicrl.checkpoint import load_tensors
from musicrl.codecs.rvq import nearest
from musicrl.codecs.spectral import SpectralCodec, SpectralCodecConfig
from musicrl.embedders.mulan import MuLan, MuLanConfig
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.pretrain import quality as stage
from musicrl.pretrain.graded import CLEAN, REAL, Grade, GradingConfig, make_graded, replace_codes
from musicrl.pretrain.opinions import area, measure_opinions
from musicrl.pretrain.quality import QualityStageConfig, contrast, train_quality
from musicrl.pretrain.ratings import read_ratings
from musicrl.pretrain.world import WorldData
from musicrl.rewards.mos import MosConfig, MosPredictor
from musicrl.rewards.quality import load_quality
from musicrl.types import Clips, Prompt
from musicrl.world import World

SMALL = MosConfig(width=12, num_blocks=1)
RATE = 16_000


@pytest.fixture(scope="module")
def weights(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of these clips, and a policy and an embedder of small sizes with random weights."""
    folder = tmp_path_factory.mktemp("quality")
    torch.manual_seed(1)
    small_codec(WorldData(tiny_world, "train").audio(range(8))).save(folder / "codec.safetensors")
    sizes: dict[str, Any] = {"condition_levels": 2, "condition_vocab": 8, "width": 16}
    MusicLM(
        MusicLMConfig(
            semantic_vocab=8,
            coarse_vocab=16,
            coarse_levels=4,
            codec_frames_per_step=1,
            num_steps=20,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            depth_width=8,
            depth_layers=1,
            depth_heads=2,
            **sizes,
        )
    ).save(folder / "policy.safetensors")
    MuLan(MuLanConfig(num_blocks=1, text_width=8, text_layers=1, **sizes)).save(
        folder / "embedder.safetensors"
    )
    return folder


def small_codec(audio: torch.Tensor) -> SpectralCodec:
    """Principal components of audio [B, N], and its own vectors as codes."""
    codec = SpectralCodec(SpectralCodecConfig(num_components=24, vocab_size=16))
    features = codec.features(audio).flatten(0, 1)
    codec.mean.copy_(features.mean(0))
    codec.components.copy_(torch.pca_lowrank(features, 24)[2])
    residual = (features - codec.mean) @ codec.components
    for codebook in codec.quantizer.codebooks:
        codebook.copy_(residual[torch.randperm(len(residual))[:16]])
        residual = residual - codebook[nearest(residual, codebook)]
    return codec


def settings(world: Path, weights: Path, **more: Any) -> QualityStageConfig:
    return QualityStageConfig(
        **{
            "world": world,
            "weights": weights,
            "model": SMALL,
            "clips": 24,
            "coded_clips": 4,
            "prompts": 3,
            "measured": 2,
            "steps": 60,
            "batch_clips": 24,
            "crop_seconds": (1.0, 1.5),
            "learning_rate": 1e-2,
            "checkpoint_every": 40,
            **more,
        }
    )


def test_the_predictor_learns_to_order_damage(weights: Path, tiny_world: Path) -> None:
    facts = train_quality(settings(tiny_world, weights))
    assert facts["pairs/white"] > 0.8
    assert facts["pairs/pink"] > 0.8  # held out
    assert facts["spearman/lowpass"] > 0.5
    _, stored = load_tensors(weights / "quality.safetensors", kind="quality")
    assert stored["facts"] == facts
    audio = WorldData(tiny_world, "validation").audio(range(8)).numpy()
    noise = np.random.default_rng(0).normal(0, 0.1, audio.shape).astype(np.float32)
    quality, prompts = load_quality(weights), [Prompt(id="0", text="a tune")] * 8
    before, after = (
        quality(prompts, Clips(audio=sound, sample_rate=RATE)) for sound in (audio, audio + noise)
    )
    assert (before > after).all()


def test_a_stopped_stage_resumes_to_the_same_weights(
    weights: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"steps": 8, "checkpoint_every": 3, "clips": 4, "measured": 1, "prompts": 1}
    config = settings(tiny_world, weights, **few)
    whole = train_quality(config)
    first, _ = load_tensors(weights / "quality.safetensors", kind="quality")
    original, calls = contrast, 0

    def stop_after(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "contrast", stop_after)
        with pytest.raises(KeyboardInterrupt):
            train_quality(config)
    assert train_quality(config) == whole
    second, _ = load_tensors(weights / "quality.safetensors", kind="quality")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_graded_clips_are_what_they_say(weights: Path, tiny_world: Path) -> None:
    world, data = World.load(weights), WorldData(tiny_world, "train")
    graded = make_graded(
        GradingConfig(
            clips=2,
            kinds=("white", "tokens"),
            kinds_per_clip=0,
            strengths=(0.5, 1.0),
            strengths_per_kind=0,
            levels=(6, 2),
            coded_clips=1,
            prompts=1,
            temperatures=(0.7, 1.6),
        ),
        data,
        world,
        lambda audio: audio[:, None, :],
    )
    found = {(g.group, g.base, g.kind, g.strength): i for i, g in enumerate(graded.grades)}
    real, coded = ("clip 0", "real"), ("clip 1", "codec")
    assert set(found) == {
        *((*real, kind, s) for kind, s in ((CLEAN, 0.0), ("white", 0.5), ("white", 1.0))),
        *((*coded, kind, s) for kind, s in ((CLEAN, 0.0), ("white", 0.5), ("white", 1.0))),
        *((*coded, "tokens", s) for s in (0.5, 1.0)),
        ("coded 0", "real", CLEAN, 0.0),
        *(("coded 0", "codec", "codec", s) for s in (0.0, 4 / 6)),
        *(("prompt 0", "codec", "policy", s) for s in (0.0, 1.0)),
    }
    audio, codes = data.audio([0, 1]), world.codec.encode(data.audio([0, 1]))
    two = world.codec.decode(codes[:1, :2])
    for key, sound in (
        ((*real, CLEAN, 0.0), audio[:1]),
        ((*coded, CLEAN, 0.0), world.codec.decode(codes[1:, :4])),
        (("coded 0", "codec", "codec", 4 / 6), two),
    ):
        torch.testing.assert_close(graded.mels[found[key]], sound.half(), atol=1e-3, rtol=1e-2)
    noise = graded.mels[found[(*real, "white", 1.0)]].float() - audio[0]
    assert float(noise.square().mean() / audio[0].square().mean()) == pytest.approx(1, abs=0.02)
    assert float(graded.opinions[found[(*real, "white", 0.5)]]) == pytest.approx(3.0)
    assert sorted(len(group) for group in graded.groups()) == [2, 3, 3, 5]


def test_codes_are_replaced_at_the_stated_rate() -> None:
    codec = SpectralCodec(SpectralCodecConfig(num_components=2, vocab_size=500))
    codes = torch.full((1, 4, 2500), 499)
    worse = replace_codes(codes, 0.6, codec, np.random.default_rng(0))
    assert float((worse != codes).float().mean()) == pytest.approx(0.3, abs=0.015)
    assert 0 <= int(worse.min()) < 5


def test_what_is_measured_with_was_never_learned_from(tmp_path: Path) -> None:
    splits = stage._gradings(settings(tmp_path, tmp_path, held_out=("crush", "tokens")), 6)
    train, validation = splits["train"], splits["validation"]
    assert set(validation.kinds) - set(train.kinds) == {"crush", "tokens"}
    assert not set(validation.strengths) & set(train.strengths)
    assert train.levels == (6, 4, 2)
    assert validation.levels == (6, 5, 4, 3, 2, 1)


def test_crops_longer_than_a_clip_are_refused(weights: Path, tiny_world: Path) -> None:
    """The policy of these tests plays 1.6 s."""
    few = {"clips": 1, "measured": 1, "coded_clips": 1, "prompts": 1, "crop_seconds": (1.0, 3.0)}
    with pytest.raises(ValueError, match=r"crop_seconds is \(1.0, 3.0\), but .* only 1\.60 s"):
        train_quality(settings(tiny_world, weights, **few))


def test_the_contrast_loss_by_hand() -> None:
    """Errors 1, 3 and 5, 5, 8: about their means -1, 1 and -1, -1, 2."""
    error, sources = torch.tensor([1.0, 3.0, 5.0, 5.0, 8.0]), torch.tensor([0, 0, 1, 1, 1])
    assert float(contrast(error, sources)) == pytest.approx((1 + 1 + 1 + 1 + 4) / 5)
    assert float(contrast(error, torch.arange(5))) == 0.0


def test_figures_of_opinions_by_hand() -> None:
    def grade(group: str, kind: str, label: float) -> Grade:
        return Grade(group=group, base=REAL, kind=kind, strength=0.0, opinion=label)

    grades = [
        grade("a", CLEAN, 5.0),
        grade("a", "white", 4.0),
        grade("a", "white", 2.0),
        grade("b", "white", 4.0),
        grade("b", "white", 2.0),
    ]
    facts = measure_opinions(np.array([4.5, 4.0, 2.0, 3.0, 5.0]), grades)
    assert facts["error"] == pytest.approx(np.sqrt((0.25 + 0 + 0 + 1 + 9) / 5))
    assert facts["pairs/white"] == 0.5  # a in order, b not
    assert facts["auc/white"] == 0.75  # above three of four
    # Ranks of scores 3 1 2 4, of labels 3.5 1.5 3.5 1.5: covariance 0.
    assert facts["spearman/white"] == pytest.approx(0.0)
    assert facts["mos/clean-real"] == 4.5
    assert facts["pairs/mean"] == facts["pairs/white"]
    assert area(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == 0.875


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"held_out": ("pnik",)}, r"held_out names 'pnik' \(nearest: pink\)"),
        ({"held_out": stage.KINDS}, "leaves no kind"),
        ({"crop_seconds": (3.0, 2.0)}, "crop_seconds must rise"),
        ({"contrast_weight": -1.0}, "contrast_weight must be 0 or more, got -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QualityStageConfig(**flags)


def sound(level: float, seconds: float = 2.0) -> np.ndarray:
    """A tone under noise of a level."""
    rng, time = np.random.default_rng(round(1e6 * level)), np.arange(round(seconds * RATE)) / RATE
    clip = 0.3 * np.sin(2 * np.pi * 440 * time) + rng.normal(0, level, len(time))
    return clip.astype(np.float32)


def encoded(level: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(level), RATE, format="WAV")
    return buffer.getvalue()


def test_ratings_of_people_replace_the_labels(tmp_path: Path) -> None:
    levels = np.linspace(0.001, 0.3, 30)
    scores = np.linspace(4.8, 1.2, 30).tolist()
    split = ["validation" if i % 3 == 1 else "train" for i in range(30)]
    table = {"audio": [encoded(level) for level in levels], "score": scores, "split": split}
    pq.write_table(pa.table(table), tmp_path / "ratings.parquet")
    facts = train_quality(
        settings(tmp_path / "none", tmp_path, ratings=tmp_path / "ratings.parquet", steps=80)
    )
    assert facts["spearman/rated"] > 0.8
    quality, prompts = load_quality(tmp_path), [Prompt(id="0", text="a tune")] * 2
    clips = Clips(audio=np.stack([sound(0.004), sound(0.25)]), sample_rate=RATE)
    better, worse = quality(prompts, clips)
    assert better > worse + 0.5


def test_ratings_are_read_from_files_beside_and_from_bytes(tmp_path: Path) -> None:
    write_wav(tmp_path / "clips" / "a.wav", sound(0.1), RATE)
    write = pq.write_table
    write(pa.table({"audio": ["clips/a.wav"] * 10, "score": [*range(1, 6)] * 2}), tmp_path / "p")
    write(pa.table({"audio": [encoded(0.1)], "score": [3.5]}), tmp_path / "b")
    heard = MosPredictor(SMALL).listen(torch.from_numpy(sound(0.1))[None])[0]
    files = {name: ratings(tmp_path / name) for name in ("p", "b")}
    assert files["p"].opinions.tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4]  # the tenth validates
    assert files["b"].opinions.tolist() == [3.5]
    for graded in files.values():
        torch.testing.assert_close(graded.mels[0].float(), heard, atol=0.01, rtol=0.01)


def ratings(path: Path, seconds: float = 1.0) -> Any:
    listen = MosPredictor(SMALL).listen
    return read_ratings(path, "train", sample_rate=RATE, seconds=seconds, listen=listen)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (lambda: {"audio": ["a.wav"]}, "{path} lacks the column 'score'"),
        (lambda: {"score": [1.0]}, "{path} lacks the column 'audio'"),
        (
            lambda: {"audio": [encoded(0.1)] * 2, "score": [3.0, 6.0]},
            "{path}: row 1 has score 6.0, expected a number from 1 to 5",
        ),
        (
            lambda: {"audio": [7], "score": [3]},
            "{path}: row 0 has audio of type int, expected a path or bytes",
        ),
        (
            lambda: {"audio": [encoded(0.1)], "score": [3.0], "split": ["test"]},
            "{path}: row 0 has split 'test', not one of train, validation",
        ),
        (
            lambda: {"audio": [encoded(0.1)], "score": [3.0], "split": ["validation"]},
            "{path} has no rows of split 'train'",
        ),
        (
            lambda: {"audio": [encoded(0.1)], "score": [3.0]},
            "{path}: row 0 lasts 2.00 s, needs 4 s",
        ),
    ],
)
def test_ratings_that_do_not_fit_are_named(
    columns: Callable[[], dict[str, Any]], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "ratings.parquet"
    pq.write_table(pa.table(columns()), path)
    with pytest.raises(ValueError, match=r".") as caught:
        ratings(path, seconds=4.0)
    assert str(caught.value) == sentence.format(path=path)


def test_missing_ratings_and_broken_audio_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ratings at .*none\.parquet"):
        ratings(tmp_path / "none.parquet")
    path = tmp_path / "ratings.parquet"
    path.write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match=r"ratings\.parquet is not a readable Parquet file"):
        ratings(path)
    pq.write_table(pa.table({"audio": [b"no audio"], "score": [3.0]}), path)
    with pytest.raises(ValueError, match="row 0 holds no readable audio"):
        ratings(path)
    pq.write_table(pa.table({"audio": ["gone.wav"], "score": [3.0]}), path)
    with pytest.raises(FileNotFoundError, match=r"no audio file at .*gone\.wav"):
        ratings(path)
