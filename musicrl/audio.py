"""Audio as numpy arrays: wav files, sample rates, loudness and a picture of the spectrum.

Files are read with soundfile and resampled with soxr. Knows nothing of codecs or models.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

QUIETEST_DB = -90.0
"""Loudest cell of a picture below which silence stays black."""


def read_wav(path: Path, *, sample_rate: int | None = None) -> NDArray[np.float32]:
    """Mono audio float32 [N] of a file, at `sample_rate` Hz (none: the file's own).

    Raises FileNotFoundError when it is missing, and ValueError naming it when it is unreadable,
    empty or not finite.
    """
    audio, _ = read_wav_with_rate(path, sample_rate=sample_rate)
    return audio


def read_wav_with_rate(
    path: Path, *, sample_rate: int | None = None
) -> tuple[NDArray[np.float32], int]:
    """Mono audio float32 [N] of a file and its sample rate in Hz; errors as `read_wav`."""
    if not path.is_file():
        raise FileNotFoundError(f"no audio file at {path}")
    mono, rate = _mono(path, str(path))
    wanted = sample_rate or rate
    return resample(mono, rate, wanted), wanted


def decode_audio(data: bytes, *, name: str, sample_rate: int) -> NDArray[np.float32]:
    """Mono audio float32 [N], at `sample_rate` Hz, of what a file holds; errors as `read_wav`,
    naming `name`."""
    mono, rate = _mono(io.BytesIO(data), name)
    return resample(mono, rate, sample_rate)


def _mono(source: Path | io.BytesIO, name: str) -> tuple[NDArray[np.float32], int]:
    """Audio [N] and its sample rate."""
    try:
        audio, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as fault:
        raise ValueError(f"{name} is not a readable audio file: {fault.error_string}") from fault
    if not audio.size:
        raise ValueError(f"{name} holds no audio")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} holds samples that are not finite")
    return to_mono(audio.T), rate


def write_wav(path: Path, audio: NDArray[np.float32], sample_rate: int) -> None:
    """Write audio [N] or [channels, N] in [-1, 1] as 16-bit PCM, whole or not at all; louder is
    clipped.

    Raises ValueError naming the file when the audio is not one or two finite channels.
    """
    channels = np.atleast_2d(audio)
    if channels.ndim != 2 or len(channels) > 2 or not np.isfinite(channels).all():
        raise ValueError(f"{path}: audio must be one or two finite channels, got {audio.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    samples = np.clip(channels, -1, 1).T
    soundfile.write(partial, samples, sample_rate, subtype="PCM_16", format="WAV")
    partial.replace(path)


def to_mono(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Channels [channels, N] to their mean [N]."""
    mono: NDArray[np.float32] = audio.mean(0, dtype=np.float32)
    return mono


def resample(audio: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Audio float32 [..., N] at `rate` Hz to [..., round(N x wanted / rate)] at `wanted` Hz."""
    if rate == wanted:
        return audio
    *lead, N = audio.shape
    rows = audio.reshape(-1, N)
    out = np.stack([soxr.resample(row, rate, wanted) for row in rows])
    return out.reshape(*lead, -1).astype(np.float32)


def split_windows(audio: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Audio [B, N] to consecutive windows [B, W, size].

    When N is no multiple of `size`, one more window is taken that ends with the clip and overlaps
    the one before (as the paper's first and last 20 s of 30 s do); a clip shorter than a window is
    padded with silence at its end. Both are this project's choice.
    """
    _, N = audio.shape
    if size > N:
        return np.pad(audio, ((0, 0), (0, size - N)))[:, None]
    starts = list(range(0, N - size + 1, size))
    if N % size:
        starts.append(N - size)
    return np.ascontiguousarray(np.stack([audio[:, s : s + size] for s in starts], 1))


def loudness(audio: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root-mean-square level of audio [..., N] in dB below full scale; -inf for silence."""
    power = np.square(audio, dtype=np.float64).mean(-1)
    with np.errstate(divide="ignore"):
        level: NDArray[np.float64] = 10 * np.log10(power)
    return level


def spectrogram_image(
    audio: NDArray[np.float32], *, window: int = 1024, hop: int = 256, range_db: float = 80.0
) -> NDArray[np.uint8]:
    """Picture uint8 [H, W, 3] of the magnitude spectrum of audio [N]: low frequencies below.

    The loudest cell is white and whatever is `range_db` below it is black.
    """
    padded = np.pad(audio, (0, max(0, window - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)).T[::-1]
    level = 20 * np.log10(np.maximum(magnitude, 1e-9))
    shade = np.clip(1 + (level - max(level.max(), QUIETEST_DB)) / range_db, 0, 1)
    return _colours(shade)


def _colours(shade: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Shade [H, W] in 0..1 to black, violet, orange, white: uint8 [H, W, 3]."""
    stops = np.array([0.0, 0.4, 0.75, 1.0])
    table = np.array([[0, 0, 0], [90, 20, 110], [240, 130, 30], [255, 255, 255]])
    channels = [np.interp(shade, stops, table[:, c]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)
