"""What a codec keeps, by level: a codec that keeps all, one that keeps silence, and the shipped."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from musicrl.evaluation.reconstruction import codec_figures
from musicrl.world import World
from tests.evaluation.samples import Samples, melody

tracker = pytest.mark.skipif(
    find_spec("swift_f0") is None, reason="swift-f0 is not installed (the extra `judges`)"
)


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
