"""What a codec keeps of real clips, by the number of levels that are decoded.

Spectra and chroma of every clip; of solos also their pitch, where a tracker is installed. It knows
nothing of policies: the figures bound what any policy of these tokens can sound like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from musicrl.codecs.base import Codec
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.pitch import (
    is_stable,
    raw_chroma_accuracy,
    raw_pitch_accuracy,
    tracks,
    voicing_kept,
)

REAL = "real"
BATCH = 16
"""Clips that go through the codec together."""

Columns = Mapping[str, NDArray[np.float64]]
"""By figure, float64 [B]; NaN where a clip has none."""


def codec_figures(
    codec: Codec,
    audio: NDArray[np.float32],
    solo: NDArray[np.bool_],
    levels: Sequence[int],
    *,
    pitch: bool,
) -> dict[str, dict[str, Figure]]:
    """Rows `N levels`, and `real` where there is pitch to compare: the figures of clips
    float32 [B, N] at the codec's rate, decoded from their first N levels.

    With `pitch`, the clips that are `solo` (bool [B]) are tracked; it then raises ValueError where
    the tracker is not installed.
    """
    rebuilt = dict(zip(levels, through(codec, audio, levels), strict=True))
    rows = {
        f"{n} levels": spectral_columns(audio, heard, codec.sample_rate)
        for n, heard in rebuilt.items()
    }
    if pitch and solo.any():
        real = tracks(audio[solo], codec.sample_rate)
        rows = {REAL: {"stable-pitch": stable(real)}} | {
            name: {**columns, **pitch_columns(real, tracks(heard[solo], codec.sample_rate))}
            for (name, columns), heard in zip(rows.items(), rebuilt.values(), strict=True)
        }
    return {
        name: {key: figure(column) for key, column in columns.items()}
        for name, columns in rows.items()
    }


@torch.inference_mode()
def through(
    codec: Codec, audio: NDArray[np.float32], levels: Sequence[int]
) -> list[NDArray[np.float32]]:
    """Clips float32 [B, N], encoded once, decoded from their first levels, by each number."""
    parts: list[list[Tensor]] = [[] for _ in levels]
    batches = torch.from_numpy(audio).split(BATCH)
    for batch in track(batches, description="through the codec", transient=True):
        codes = codec.encode(batch)
        for part, count in zip(parts, levels, strict=True):
            part.append(codec.decode(codes[:, :count]))
    return [torch.cat(part).numpy() for part in parts]


def spectral_columns(
    audio: NDArray[np.float32], rebuilt: NDArray[np.float32], sample_rate: int
) -> Columns:
    """Of clips [B, N] and what came back of them."""
    pairs = [
        (
            torch.from_numpy(audio[start : start + BATCH]),
            torch.from_numpy(rebuilt[start : start + BATCH]),
        )
        for start in range(0, len(audio), BATCH)
    ]
    measures = {
        "log-spectral-distance": log_spectral_distance,
        "chroma-correlation": chroma_correlation,
    }
    return {
        name: torch.cat([measure(a, b, sample_rate) for a, b in pairs]).double().numpy()
        for name, measure in measures.items()
    }


def pitch_columns(real: NDArray[np.float64], rebuilt: NDArray[np.float64]) -> Columns:
    """Of tracks [B, frames]."""
    measures = {
        "raw-pitch-accuracy": raw_pitch_accuracy,
        "raw-chroma-accuracy": raw_chroma_accuracy,
        "voicing-kept": voicing_kept,
    }
    columns = {
        name: np.array([measure(a, b) for a, b in zip(real, rebuilt, strict=True)])
        for name, measure in measures.items()
    }
    return {**columns, "stable-pitch": stable(rebuilt)}


def stable(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for each track of [B, frames] that can be sung, else 0."""
    return np.array([float(is_stable(row)) for row in found])


def log_spectral_distance(a: Tensor, b: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of log magnitudes [B], nats, floor -60 dB below full scale; spectra
    of 80 ms, every 20 ms."""
    size, hop = round(0.08 * sample_rate), round(0.02 * sample_rate)
    window = torch.hann_window(size)
    spectra = (torch.stft(x, size, hop, window=window, return_complex=True).abs() for x in (a, b))
    first, second = (torch.log(magnitudes / size * 4 + 1e-3) for magnitudes in spectra)
    return (first - second).abs().mean((1, 2))


def chroma_correlation(a: Tensor, b: Tensor, sample_rate: int) -> Tensor:
    """Mean over sounding frames of the correlation of 12-bin chroma [B], 100 Hz to 2.1 kHz."""
    size, hop = 4096, 1024
    window = torch.hann_window(size)
    frequency = torch.arange(1, size // 2) * sample_rate / size
    pitch = 12 * torch.log2(frequency / 440) + 9
    distance = (pitch[None] - torch.arange(12)[:, None] + 6) % 12 - 6
    weights = torch.exp(-0.5 * (distance / 0.3) ** 2) * ((frequency > 100) & (frequency < 2100))
    chroma = [
        weights
        @ torch.stft(x, size, hop, window=window, return_complex=True).abs()[:, 1 : size // 2]
        for x in (a, b)
    ]
    sounding = chroma[0].sum(1) > 0.03 * chroma[0].sum(1).amax(1, keepdim=True)
    centred = [x - x.mean(1, keepdim=True) for x in chroma]
    scale = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    correlation = (centred[0] * centred[1]).sum(1) / scale.clamp(min=1e-6)
    mean: Tensor = (correlation * sounding).sum(1) / sounding.sum(1).clamp(min=1)
    return mean
