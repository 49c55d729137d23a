"""SoundStream's training on a few clips: averages and losses by hand, both sides learning."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.cli import main
from musicrl.checkpoint import load_tensors
from musicrl.codecs.ema import replace_dead, update_codebook
from musicrl.codecs.rvq import ResidualQuantizer
from musicrl.codecs.soundstream import SoundStream, SoundStreamConfig
from musicrl.pretrain import soundstream as stage
from musicrl.pretrain.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    Verdict,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from musicrl.pretrain.quantizing import FRESH_COUNT, MovingAverages, draw_levels, lloyd
from musicrl.pretrain.soundstream import SoundStreamStageConfig, train_soundstream
from musicrl.pretrain.spectral_loss import SCALES, SpectralLoss

CODEC = SoundStreamConfig(
    sample_rate=16_000,
    strides=(2, 4, 5, 8),
    width=4,
    embedding_size=8,
    num_codebooks=3,
    vocab_size=8,
)
DISCRIMINATORS = DiscriminatorConfig(
    stft_windows=(256, 64), stft_width=2, waveform_scales=(1, 2), waveform_width=4
)


def config_of(world: Path, weights: Path) -> SoundStreamStageConfig:
    return SoundStreamStageConfig(
        world=world,
        weights=weights,
        codec=CODEC,
        discriminators=replace(DISCRIMINATORS, stft_windows=(256,), waveform_scales=(2,)),
        coarse_levels=2,
        measured=4,
        steps=12,
        batch_clips=4,
        crop_seconds=0.15,
        learning_rate=2e-3,
        checkpoint_every=5,
    )


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_averages_are_those_made_by_hand() -> None:
    codebook = torch.tensor([[0.0], [10.0]])
    counts, sums = torch.tensor([4.0, 1.0]), torch.tensor([[0.0], [10.0]])
    vectors, code = torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([0, 0, 1])
    update_codebook(codebook, counts, sums, vectors, code, decay=0.9)
    assert counts.tolist() == pytest.approx([0.9 * 4 + 0.1 * 2, 1.0])
    assert codebook[:, 0].tolist() == pytest.approx([0.1 * 3 / 3.8, (0.9 * 10 + 0.1 * 9) / 1.0])
    dead = replace_dead(codebook, counts, sums, vectors[:1], random(0), threshold=2.0, fresh=4.0)
    assert dead == 1
    assert codebook[1].tolist() == [1.0]
    assert counts.tolist() == pytest.approx([3.8, 4.0])
    assert sums[:, 0].tolist() == pytest.approx([0.3, 4.0])


def test_k_means_finds_clusters_that_are_there() -> None:
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    vectors = centres.repeat_interleave(torch.tensor([10, 20, 30]), 0)
    vectors = vectors + 0.01 * torch.randn(60, 2, generator=random(1))
    runs = [lloyd(vectors, 3, random(seed)) for seed in range(9)]  # some end in a poor optimum
    found, counts = min(runs, key=lambda run: float(torch.cdist(vectors, run[0]).amin(1).sum()))
    order = counts.argsort()
    assert counts[order].tolist() == [10, 20, 30]
    torch.testing.assert_close(found[order], centres, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="a batch of 60 vectors cannot start a codebook of 61"):
        lloyd(vectors, 61, random(0))


def test_each_clip_goes_through_its_own_levels_alone() -> None:
    quantizer = ResidualQuantizer(3, 4, 2)
    averages = MovingAverages(quantizer)
    vectors = torch.randn(3, 40, 2, generator=random(0), requires_grad=True)
    averages.quantise(quantizer, vectors, torch.tensor([3, 3, 3]), random(1))
    before, counts = quantizer.codebooks.clone(), averages.counts.clone()
    assert averages.is_started
    levels = torch.tensor([1, 2, 1])
    made = averages.quantise(quantizer, vectors, levels, random(2))
    frozen = ResidualQuantizer(3, 4, 2)
    frozen.codebooks.copy_(before)
    codes = frozen.encode(vectors)
    for clip, level in enumerate(levels.tolist()):
        wanted = frozen.decode(codes[clip, :, :level])
        torch.testing.assert_close(made.vectors[clip], wanted, atol=1e-5, rtol=1e-5)
    for level in range(3):  # the averages follow all clips
        n = torch.bincount(codes[:, :, level].flatten(), minlength=4)
        moved = 0.99 * counts[level] + 0.01 * n
        fresh = torch.where(moved < 2, torch.tensor(FRESH_COUNT), moved)
        torch.testing.assert_close(averages.counts[level], fresh)
    made.vectors.sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, torch.ones_like(vectors))  # straight through


def test_a_code_that_nothing_falls_to_is_replaced_in_time() -> None:
    """Its count of 4 decays below 2 after ln 2 / -ln 0.99 = 69 batches, and not before."""
    quantizer = ResidualQuantizer(1, 2, 1)
    averages = MovingAverages(quantizer)
    averages.is_started.fill_(True)
    quantizer.codebooks.copy_(torch.tensor([[[0.0], [100.0]]]))
    averages.counts.fill_(FRESH_COUNT)
    averages.sums.copy_(averages.counts[..., None] * quantizer.codebooks)
    vectors, levels = torch.zeros(1, 50, 1), torch.tensor([1])
    replaced = [
        averages.quantise(quantizer, vectors, levels, random(i)).replaced for i in range(70)
    ]
    assert math.ceil(math.log(2) / -math.log(0.99)) == 69
    assert replaced == [0] * 68 + [1, 0]
    assert quantizer.codebooks[0, 1].item() == 0.0


def test_dropout_draws_every_number_of_levels_alike() -> None:
    counts = torch.bincount(draw_levels(6000, 3, random(0)), minlength=4)
    assert counts[0] == 0
    assert (counts[1:] - 2000).abs().max() < 150


def test_losses_are_those_made_by_hand() -> None:
    real = [Verdict(torch.tensor([2.0, 0.5]), (torch.tensor([1.0, 3.0]),))]
    made = [Verdict(torch.tensor([-3.0, 0.5]), (torch.tensor([2.0, 3.0]),))]
    assert discriminator_loss(real, made).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1.5) / 2)
    assert adversarial_loss(made).item() == pytest.approx((4 + 0.5) / 2)
    assert feature_loss(real, made).item() == pytest.approx(0.5)


def test_the_spectral_loss_of_a_gain_is_known() -> None:
    """Twice the sound: the first norm is that of the spectrum, each loud band's log differs by ln 2."""
    loss = SpectralLoss(16_000)
    audio = torch.randn(1, 8192, generator=random(0))
    assert loss(audio, audio).item() == pytest.approx(0, abs=1e-3)
    wanted = 0.0
    for size in SCALES:
        mel = loss.mel(size, audio)
        sounding = (mel > 1e-3).sum(1)
        wanted += float(
            mel.sum(1).mean() + math.sqrt(size / 2) * (math.log(2) * sounding.sqrt()).mean()
        )
    assert loss(audio, 2 * audio).item() == pytest.approx(wanted, rel=1e-3)


def test_discriminators_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    model = Discriminators(DISCRIMINATORS)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    tone = torch.sin(torch.arange(2048) * 0.2).repeat(4, 1)
    for _ in range(12):
        loss = discriminator_loss(model(tone), model(torch.randn(4, 2048)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    verdicts = zip(model(tone), model(torch.randn(4, 2048)), strict=True)
    assert all(real.logits.mean() > made.logits.mean() + 0.3 for real, made in verdicts)


def test_the_codec_learns_and_a_stopped_training_goes_on(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_world, tmp_path / "whole")
    update, losses = stage.update, list[float]()

    def watched(*args: object) -> object:
        found = update(*args)  # type: ignore[arg-type]
        losses.append(found["reconstruction"])
        if len(losses) == 12 + 8:  # three steps after the second training's checkpoint
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(stage, "update", watched)
    facts = train_soundstream(config)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert set(facts) >= {  # and the pitch of solos, where a tracker is installed
        f"{name}/{levels}"
        for name in ("log_spectral_distance", "chroma_correlation")
        for levels in (2, 3)
    }
    halves = replace(config, weights=tmp_path / "halves")
    with pytest.raises(KeyboardInterrupt):
        train_soundstream(halves)
    assert train_soundstream(halves) == facts
    assert len(losses) == 12 + 8 + 7
    first, second = (
        load_tensors(folder / "soundstream.safetensors", kind="codec")[0]
        for folder in (config.weights, halves.weights)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    codec = SoundStream.from_file(config.weights / "soundstream.safetensors")
    assert codec.encode(torch.zeros(1, 640)).shape == (1, 3, 2)


def test_clips_that_do_not_fit_are_named(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["pretrain", "soundstream", "--world", str(tiny_world), "--weights", str(tmp_path)]
    assert main(args) == 1
    assert "holds clips of 16000 Hz, the codec is of 24000 Hz: render them with musicrl" in (
        capsys.readouterr().err
    )
    assert main([*args, "--codec.sample-rate", "16000", "--crop-seconds", "7"]) == 1
    assert "crop_seconds is 7.0, a clip lasts 6 s" in capsys.readouterr().err
    assert main([*args, "--crop-seconds", "0.01"]) == 1
    assert "crop_seconds must be 2048 samples or more, got 0.01" in capsys.readouterr().err
    assert main([*args, "--discriminators.stft-windows", "[100]"]) == 1
    assert "stft_windows must be powers of 2, got 100" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_codec_learns_on_a_gpu(tiny_world: Path, tmp_path: Path) -> None:
    facts = train_soundstream(replace(config_of(tiny_world, tmp_path), gpus=1.0))
    assert all(math.isfinite(value) for value in facts.values())
    codec = SoundStream.from_file(tmp_path / "soundstream.safetensors")
    audio = torch.randn(2, 3200, generator=random(0)) * 0.1
    wanted = codec.encode(audio)
    found = codec.to(torch.device("cuda")).encode(audio.cuda()).cpu()
    assert (found == wanted).float().mean() > 0.95


def test_a_gpu_that_is_not_there_is_named(tiny_world: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="1 GPUs are asked for, but torch finds none"):
        train_soundstream(replace(config_of(tiny_world, tmp_path), gpus=1.0))
