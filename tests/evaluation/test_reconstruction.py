"""What a codec keeps, by level: a codec that keeps all, one that keeps silence, and the shipped."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.evaluation.reconstruction import codec_figures
from musicrl.world import World

tracker = pytest.mark.skipif(
    find_spec("swift_f0") is None, reason="swift-f0 is not installed (the extra `judges`)"
)


class Samples:
    """A codec of two levels: the samples in hundredths, and what is left of them."""

    sample_rate, frame_size, frame_rate = 16_000, 1, 16_000.0
    num_codebooks, vocab_size = 2, 1 << 20
    device = torch.device("cpu")

    def to(self, device: torch.device) -> Samples:
        return self

    def encode(self, audio: Tensor) -> Tensor:
        coarse = (audio * 100).round()
        return torch.stack([coarse, ((audio * 100 - coarse) * 1e6).round()], 1).long()

    def decode(self, codes: Tensor) -> Tensor:
        parts = codes.float() / torch.tensor([100, 1e8])[: codes.shape[1], None]
        return parts.sum(1)


def melody(rate: int, seconds: float) -> NDArray[np.float32]:
    """Three held tones of six harmonics, float32 [N]."""
    time = np.arange(round(seconds * rate / 3)) / rate
    tones = [
        sum(np.sin(2 * np.pi * hz * n * time) / n for n in range(1, 7)) * 0.1
        for hz in (440.0, 493.88, 587.33)
    ]
    return np.concatenate(tones).astype(np.float32)


@tracker
def test_a_codec_that_keeps_all_has_no_fault_and_only_solos_are_tracked() -> None:
    audio = np.stack([melody(16_000, 1.5)] * 3)
    solo = np.array([True, False, True])
    rows = codec_figures(Samples(), audio, solo, [2], pitch=True)
    assert list(rows) == ["real", "2 levels"]
    assert rows["real"]["stable-pitch"].count == 2
    found = rows["2 levels"]
    assert found["log-spectral-distance"].mean == pytest.approx(0, abs=1e-3)
    assert found["chroma-correlation"].mean == pytest.approx(1, abs=1e-3)
    assert found["chroma-correlation"].count == 3
    for name in ("raw-pitch-accuracy", "raw-chroma-accuracy", "voicing-kept", "stable-pitch"):
        assert (found[name].mean, found[name].count) == (1.0, 2)


@tracker
def test_silence_keeps_no_voice() -> None:
    audio = melody(16_000, 1.5)[None] * 0.01  # below the first level's step
    rows = codec_figures(Samples(), audio, np.array([True]), [1], pitch=True)
    assert rows["1 levels"]["voicing-kept"].mean == 0.0
    assert rows["1 levels"]["raw-pitch-accuracy"].mean == 0.0


def test_without_pitch_no_track_is_made() -> None:
    audio = melody(16_000, 1.5)[None]
    rows = codec_figures(Samples(), audio, np.array([True]), [1, 2], pitch=False)
    assert list(rows) == ["1 levels", "2 levels"]
    assert all(
        row.keys() == {"log-spectral-distance", "chroma-correlation"} for row in rows.values()
    )
    distances = [row["log-spectral-distance"].mean for row in rows.values()]
    assert distances[0] > distances[1]


@tracker
def test_the_shipped_codec_keeps_a_melody_at_its_coarse_levels() -> None:
    codec = World.load().codec
    audio = melody(codec.sample_rate, 3.84)[None]
    (row,) = [
        found
        for name, found in codec_figures(codec, audio, np.array([True]), [4], pitch=True).items()
        if name != "real"
    ]
    assert row["raw-pitch-accuracy"].mean > 0.8
