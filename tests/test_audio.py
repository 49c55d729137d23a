"""Audio files and measures, against numbers made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicrl.audio import (
    loudness,
    read_wav,
    read_wav_with_rate,
    resample,
    spectrogram_image,
    write_wav,
)


def sine(hertz: float, seconds: float, rate: int, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype("f4")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    audio = sine(440, 0.1, 16_000)
    write_wav(tmp_path / "deep" / "a.wav", audio, 16_000)
    back, rate = read_wav_with_rate(tmp_path / "deep" / "a.wav")
    assert rate == 16_000
    np.testing.assert_allclose(back, audio, atol=1 / 32_767)
    assert soundfile.info(tmp_path / "deep" / "a.wav").subtype == "PCM_16"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.wav"]


def test_too_loud_is_clipped_not_wrapped(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0, 0.0], np.float32), 8_000)
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav"), [1.0, -1.0, 0.0], atol=1e-4)


def test_writing_refuses_what_is_not_one_or_two_finite_channels(tmp_path: Path) -> None:
    for audio in (np.zeros((3, 4), np.float32), np.array([0.0, np.nan], np.float32)):
        with pytest.raises(ValueError, match=r"bad\.wav"):
            write_wav(tmp_path / "bad.wav", audio, 8_000)
    assert not list(tmp_path.iterdir())


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.array([[0.5, -0.25], [0.25, 0.25]], np.float32)
    soundfile.write(tmp_path / "s.wav", stereo, 8_000, subtype="FLOAT")
    np.testing.assert_allclose(read_wav(tmp_path / "s.wav"), [0.125, 0.25])


def test_a_tone_keeps_its_pitch_and_level_at_another_rate(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", sine(1_000, 1.0, 48_000), 48_000)
    audio = read_wav(tmp_path / "a.wav", sample_rate=16_000)
    assert audio.shape == (16_000,)
    assert np.abs(np.fft.rfft(audio)).argmax() == 1_000
    np.testing.assert_allclose(audio[1000:-1000], sine(1_000, 1.0, 16_000)[1000:-1000], atol=2e-3)


def test_a_batch_is_resampled_row_by_row() -> None:
    batch = np.stack([sine(200, 0.1, 8_000), sine(300, 0.1, 8_000)])
    both = resample(batch, 8_000, 16_000)
    np.testing.assert_array_equal(both[1], resample(batch[1], 8_000, 16_000))
    assert both.shape == (2, 1_600)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable audio file"),
        (b"RIFF, but no wave", "not a readable audio file"),
    ],
)
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(ValueError, match=words) as fault:
        read_wav(tmp_path / "bad.wav")
    assert "bad.wav" in str(fault.value)
    assert "\n" not in str(fault.value)


def test_an_empty_or_infinite_file_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 8_000)
    with pytest.raises(ValueError, match=r"empty\.wav holds no audio"):
        read_wav(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "inf.wav", np.array([0.0, np.inf]), 8_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"inf\.wav holds samples that are not finite"):
        read_wav(tmp_path / "inf.wav")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        read_wav(tmp_path / "nowhere.wav")


def test_loudness_of_known_signals() -> None:
    full = sine(100, 1.0, 8_000, peak=1.0)
    levels = loudness(np.stack([full, 0.1 * full, np.zeros_like(full)]))
    np.testing.assert_allclose(levels[:2], [-3.0103, -23.0103], atol=1e-3)
    assert levels[2] == -np.inf


def test_a_low_tone_is_drawn_below_a_high_one() -> None:
    low, high = (spectrogram_image(sine(hertz, 0.5, 16_000)) for hertz in (500, 6_000))
    rows = [image.sum(axis=(1, 2), dtype=int).argmax() for image in (low, high)]
    bins, of_500, of_6000 = 513, 500 * 1024 // 16_000, 6_000 * 1024 // 16_000
    assert rows == [bins - 1 - of_500, bins - 1 - of_6000]
    assert low.dtype == np.uint8
    assert low.max() == 255


def test_silence_is_black() -> None:
    assert not spectrogram_image(np.zeros(4_000, np.float32)).any()
