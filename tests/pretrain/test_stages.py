"""Every stage of pretraining, for real, on a world of a few clips."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from musicrl.checkpoint import load_tensors
from musicrl.codecs.spectral import SpectralCodec
from musicrl.embedders.mulan import MuLan
from musicrl.evaluation.judges import CALIBRATION, TagHearing, TagScores
from musicrl.evaluation.musicnn import Tagger
from musicrl.policies.musiclm import MusicLM
from musicrl.pretrain.calibration import CalibrationStageConfig, calibrate_tagger
from musicrl.pretrain.embedder import coded_log_mels, train_embedder
from musicrl.pretrain.policy import Fellows, PolicyStageConfig, train_policy
from musicrl.pretrain.prompts import PromptStageConfig, count_unseen, write_prompts
from musicrl.pretrain.tokens import TokenData
from musicrl.pretrain.world import WorldConfig, WorldData, build_world
from musicrl.prompts import attribute, load_prompts
from musicrl.types import Clips
from musicrl.world import World
from tests.pretrain.small import POLICY, embedder_stage


def test_clips_are_audible_at_the_level_their_captions_claim(tiny_world: Path) -> None:
    data = WorldData(tiny_world, "train")
    peaks = data.audio(range(len(data))).abs().amax(1)
    for peak, attributes in zip(peaks.tolist(), data.attributes, strict=True):
        assert abs(peak - {"soft": 0.22, "loud": 0.75}[attributes.loudness]) < 0.01


def test_a_stopped_build_resumes_to_the_same_clips(
    world_config: WorldConfig, tiny_world: Path
) -> None:
    shard = tiny_world / "audio-train" / "00001.npy"
    kept = tiny_world / "audio-train" / "00000.npy"
    before, untouched = np.load(shard), kept.stat().st_mtime_ns
    shard.unlink()
    build_world(world_config)
    assert np.array_equal(np.load(shard), before)
    assert kept.stat().st_mtime_ns == untouched


def test_another_world_in_the_same_folder_is_refused(
    world_config: WorldConfig, tiny_world: Path
) -> None:
    with pytest.raises(ValueError, match="holds a world of other settings"):
        build_world(replace(world_config, seed=5))


def test_held_out_prompts_are_of_test_tunes_and_distinct(weights: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(weights / "prompts.parquet").to_pylist()
    texts = [row["text"] for row in rows if row["split"] == "heldout"]
    assert len(texts) == 20 == len(set(texts))
    assert all(row["instrument"] in row["text"] for row in rows if row["split"] == "heldout")


def test_combinations_that_no_training_clip_has_are_counted(
    tiny_world: Path, tmp_path: Path
) -> None:
    known = WorldData(tiny_world, "train").attributes
    rows = [known[0].as_row(), {**known[1].as_row(), "genre": "polka"}, known[2].as_row()]
    assert count_unseen(rows, known) == 1
    config = PromptStageConfig(
        world=tiny_world, weights=tmp_path, train_prompts=40, heldout_prompts=20
    )
    found = write_prompts(config)
    assert (found["prompts/train"], found["prompts/heldout"]) == (40, 20)
    own = {tuple(a.as_row().values()) for a in known}
    heldout = load_prompts(tmp_path / "prompts.parquet", split="heldout")
    names = list(known[0].as_row())
    asked = [tuple(attribute(prompt, name) for name in names) for prompt in heldout]
    assert found["prompts/unseen_combinations"] == sum(row not in own for row in asked) > 0


def test_the_codec_keeps_more_with_more_levels(weights: Path, tiny_world: Path) -> None:
    from musicrl.pretrain.codec import measure_codec

    facts = measure_codec(
        SpectralCodec.from_file(weights / "codec.safetensors"),
        WorldData(tiny_world, "validation"),
        2,
    )
    assert facts["chroma_correlation/6"] > facts["chroma_correlation/2"] > 0.5
    assert facts["log_spectral_distance/6"] < facts["log_spectral_distance/2"]


def test_the_embedder_prefers_the_true_caption(weights: Path, tiny_world: Path) -> None:
    model = MuLan.from_file(weights / "embedder.safetensors")
    data = WorldData(tiny_world, "train")
    audio = model.embed_clip(data.audio(range(48)))
    scores = audio @ model.embed_text(data.captions(range(48), Random(0), complete=True)).T
    others = (scores.sum() - scores.diagonal().sum()) / (48 * 47)
    assert scores.diagonal().mean() > others + 0.1


def test_the_embedder_hears_clips_through_the_codec(
    weights: Path, tiny_world: Path, tmp_path: Path
) -> None:
    heard = MuLan.from_file(weights / "embedder.safetensors")
    config = embedder_stage(tiny_world, weights, codec_levels=4)
    data = WorldData(tiny_world, "train")
    mels = coded_log_mels(heard, data, replace(config, codec_clips=40))
    codec = SpectralCodec.from_file(weights / "codec.safetensors")
    audio = data.audio([33])
    decoded = codec.decode(codec.encode(audio)[:, :4])
    assert mels.shape[0] == 40
    torch.testing.assert_close(mels[33:34].float(), heard.front(decoded), atol=1e-2, rtol=1e-2)
    assert not torch.allclose(mels[33:34].float(), heard.front(audio), atol=0.1)
    _, stored = load_tensors(weights / "embedder.safetensors", kind="embedder")
    assert -1 < stored["facts"]["coded/cosine/matched"] < 1
    with pytest.raises(FileNotFoundError, match=r"codec\.safetensors"):
        train_embedder(replace(config, weights=tmp_path))


def test_a_stopped_embedder_resumes_to_the_same_weights(tiny_world: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train_embedder(embedder_stage(tiny_world, whole, steps=24))
    from musicrl.pretrain import embedder as stage

    config = embedder_stage(tiny_world, halves, steps=24)
    original = stage.contrastive_loss
    calls = 0

    def stop_after(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 22:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    stage.contrastive_loss = stop_after  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            train_embedder(config)
    finally:
        stage.contrastive_loss = original
    train_embedder(config)
    first, second = (
        load_tensors(folder / "embedder.safetensors", kind="embedder") for folder in (whole, halves)
    )
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def test_the_policy_learns_and_the_world_plays(tiny_world: Path, weights: Path) -> None:
    facts = train_policy(
        PolicyStageConfig(
            world=tiny_world,
            weights=weights,
            model=POLICY,
            steps=60,
            batch_clips=8,
            learning_rate=5e-3,
            checkpoint_every=30,
        )
    )
    uniform = (np.log(256) + 4 * np.log(32)) / 5
    assert facts["nll/audio_condition"] < uniform - 0.3
    world = World.load(weights)
    assert isinstance(world.policy, MusicLM)
    assert world.clip_seconds == 6.0
    tokens = np.random.default_rng(0).integers(0, 32, (2, 75, 5)).astype(np.int16)
    audio = world.decode(tokens)
    assert audio.shape == (2, 96_000)
    assert np.abs(audio).max() > 0.01
    assert np.allclose(world.decode(tokens[1:]), audio[1:], atol=1e-5)


def test_a_policy_of_noisy_pairs_is_a_file_of_its_own(
    tiny_world: Path, weights: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(weights, tmp_path / "weights"))
    config = PolicyStageConfig(
        world=tiny_world, weights=folder, model=POLICY, steps=3, batch_clips=4, name="noisy"
    )
    files = {}
    for share in (0.0, 0.4):
        train_policy(replace(config, misdescribed=share))
        files[share], _ = load_tensors(folder / "noisy.safetensors", kind="policy")
    assert any(not torch.equal(files[0.0][name], files[0.4][name]) for name in files[0.0])
    world = World.load(folder, Path("noisy.safetensors"))
    stored = files[0.4]["trunk.start"].float()
    assert torch.equal(world.policy.trunk.start.detach(), stored)


def test_a_fellow_shares_the_label() -> None:
    labels = list("abcabcaab")
    index = torch.arange(9).repeat(200)
    drawn = Fellows(labels).draw(index, torch.rand(len(index)))
    assert [labels[i] for i in drawn.tolist()] == [labels[i] for i in index.tolist()]
    assert torch.bincount(drawn, minlength=9).min() > 100
    edges = Fellows(labels).draw(torch.arange(9), torch.full((9,), 1 - 2.0**-24))
    assert [labels[i] for i in edges.tolist()] == labels


def test_tokens_are_made_again_when_a_model_behind_them_changes(
    weights: Path, tiny_world: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(weights, tmp_path / "weights"))
    (path := folder / "tokens-validation.safetensors").unlink(missing_ok=True)
    data = WorldData(tiny_world, "validation")
    first = TokenData(folder, data, "validation", POLICY.layout)
    made = path.stat().st_mtime_ns
    TokenData(folder, data, "validation", POLICY.layout)
    assert path.stat().st_mtime_ns == made
    codec = SpectralCodec.from_file(folder / "codec.safetensors")
    codec.mean.add_(0.3)
    codec.save(folder / "codec.safetensors")
    assert not torch.equal(TokenData(folder, data, "validation", POLICY.layout).grids, first.grids)


def test_the_calibration_is_that_of_the_worlds_clips(tiny_world: Path, tmp_path: Path) -> None:
    calibrate_tagger(CalibrationStageConfig(world=tiny_world, weights=tmp_path))
    data = WorldData(tiny_world, "validation")
    audio = data.audio(range(len(data))).numpy()
    scores = TagScores(TagHearing(Tagger()), tmp_path / CALIBRATION)(
        Clips(audio=audio, sample_rate=16_000)
    )
    np.testing.assert_allclose(scores.mean(0), 0.0, atol=1e-2)
    np.testing.assert_allclose(scores.std(0), 1.0, atol=1e-2)


def test_parts_that_do_not_fit_are_named(weights: Path, tmp_path: Path) -> None:
    other = MusicLM(replace(POLICY, condition_levels=3))
    other.save(tmp_path / "policy.safetensors")
    with pytest.raises(ValueError, match="differ in conditioning levels: 3 and 4"):
        World.load(weights, tmp_path / "policy.safetensors")
    MusicLM(replace(POLICY, coarse_levels=7)).save(tmp_path / "policy.safetensors")
    with pytest.raises(ValueError, match="writes 7 coarse levels, the codec knows 6"):
        World.load(weights, tmp_path / "policy.safetensors")
