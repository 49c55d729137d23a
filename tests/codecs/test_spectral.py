"""The spectral codec: its transforms against slow twins and its promises about batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musicrl.codecs.rvq import ResidualQuantizer
from musicrl.codecs.spectral import SpectralCodec, SpectralCodecConfig, initial_phases
from musicrl.pretrain.kmeans import fit_quantizer

SMALL = SpectralCodecConfig(
    fft_size=256, hop_size=64, spectra_per_frame=2, num_components=128, vocab_size=16
)


def tone(frequencies: list[float], num_samples: int = 12_800) -> torch.Tensor:
    time = torch.arange(num_samples) / 16_000
    return torch.stack([0.5 * torch.sin(2 * torch.pi * f * time) for f in frequencies])


def identity_codec() -> SpectralCodec:
    """A codec whose components span everything, so that only phases and codes can be lost."""
    config = SpectralCodecConfig(
        fft_size=256, hop_size=64, spectra_per_frame=2, num_components=256, vocab_size=8
    )
    codec = SpectralCodec(config)
    codec.components.copy_(torch.eye(256))
    return codec


def test_residual_codes_are_the_greedy_choice_by_brute_force() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(3, 7, 4)
    quantizer.codebooks.normal_()
    vectors = torch.randn(5, 4)
    codes = quantizer.encode(vectors)
    for vector, code in zip(vectors, codes, strict=True):
        rest = vector.clone()
        for level in range(3):
            distances = [(rest - row).norm() for row in quantizer.codebooks[level]]
            assert code[level] == int(torch.stack(distances).argmin())
            rest = rest - quantizer.codebooks[level, code[level]]
    rebuilt = quantizer.decode(codes)
    by_hand = sum(quantizer.codebooks[level][codes[:, level]] for level in range(3))
    torch.testing.assert_close(rebuilt, by_hand)


def test_each_level_leaves_less_unexplained() -> None:
    torch.manual_seed(0)
    centres = torch.randn(32, 6) * 3
    vectors = centres[torch.randint(32, (4000,))] + 0.3 * torch.randn(4000, 6)
    quantizer = ResidualQuantizer(2, 32, 6)
    fit_quantizer(quantizer, lambda step: vectors, steps=40, description="fit")
    energy = vectors.square().mean()
    codes = quantizer.encode(vectors)
    left = [
        float((vectors - quantizer.decode(codes[:, :n])).square().mean() / energy) for n in (1, 2)
    ]
    assert left[0] < 0.05
    assert left[1] < 0.8 * left[0]


def test_a_steady_tone_survives_phase_retrieval() -> None:
    codec = identity_codec()
    audio = tone([440.0, 1234.5])
    magnitudes = codec.stft(audio).abs()
    rebuilt = codec.invert(magnitudes)
    inner = slice(2000, -2000)
    for before, after in zip(audio[:, inner], rebuilt[:, inner], strict=True):
        spectra = [torch.fft.rfft(x * torch.hann_window(len(x))).abs() for x in (before, after)]
        ratio = float(spectra[1].argmax() / spectra[0].argmax())
        assert abs(ratio - 1) < 0.005  # 9 cents, at 62.5 Hz a bin
        assert spectra[1].max() / spectra[0].max() > 0.9


def test_first_phases_advance_at_the_frequency_of_the_peak() -> None:
    codec = identity_codec()
    magnitudes = codec.stft(tone([1000.0])).abs()
    phases = initial_phases(magnitudes, codec.config)
    advance = (phases[0, 16, 11] - phases[0, 16, 10]) % (2 * torch.pi)
    expected = 2 * torch.pi * 1000 * 64 / 16_000 % (2 * torch.pi)
    assert abs(float(advance) - expected) < 0.05


def test_a_clip_decodes_alike_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    codec = SpectralCodec(SMALL)
    codec.components.copy_(torch.linalg.qr(torch.randn(256, 128)).Q)
    codec.mean.fill_(0.5)
    codec.quantizer.codebooks.normal_(std=0.3)
    codes = torch.randint(16, (3, 2, 50))
    together = codec.decode(codes)
    for clip, audio in zip(codes, together, strict=True):
        torch.testing.assert_close(codec.decode(clip[None])[0], audio, atol=1e-5, rtol=0)


def test_levels_refine_the_reconstruction() -> None:
    torch.manual_seed(0)
    codec = SpectralCodec(SMALL)
    audio = torch.cat([tone([220.0, 330.0, 550.0, 880.0]), 0.1 * torch.randn(4, 12_800)])
    features = codec.features(audio).flatten(0, 1)
    codec.mean.copy_(features.mean(0))
    codec.components.copy_(torch.linalg.svd(features - codec.mean).Vh[:128].T)
    vectors = (features - codec.mean) @ codec.components
    fit_quantizer(codec.quantizer, lambda step: vectors, steps=30, description="fit")
    target = codec.stft(audio).abs()[:, :-1, :-1]
    codes = codec.encode(audio)
    errors = [
        float((codec.magnitudes(codes[:, :n])[:, :-1, :-1] - target).norm()) for n in (1, 3, 6)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_audio_of_a_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="12801 samples is not a multiple of 128"):
        SpectralCodec(SMALL).encode(torch.zeros(1, 12_801))


def test_a_file_gives_the_same_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = SpectralCodec(SMALL)
    codec.components.copy_(torch.linalg.qr(torch.randn(256, 128)).Q.half().float())
    codec.quantizer.codebooks.copy_(torch.randn(6, 16, 128).half().float())
    codec.save(tmp_path / "codec.safetensors", chroma=0.5)
    audio = tone([440.0])
    loaded = SpectralCodec.from_file(tmp_path / "codec.safetensors")
    assert torch.equal(loaded.encode(audio), codec.encode(audio))
