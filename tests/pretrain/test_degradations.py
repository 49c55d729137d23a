"""Degradations do what they say, in numbers worked out by hand, and labels follow them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrl.pretrain.degradations import (
    DEGRADATIONS,
    degrade,
    heat,
    kept_by,
    kept_by_codec,
    opinion,
)

RATE = 16_000
TIME = np.arange(2 * RATE) / RATE
TONE = (0.5 * np.sin(2 * np.pi * 997 * TIME)).astype(np.float32)
"""Of no whole number of samples a period: it visits every value."""
S = (0.2, 0.6, 1.0)
NOISE = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)


def damaged(kind: str, audio: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    return degrade(kind, audio, strength=strength, sample_rate=RATE, rng=rng)


def decibels(part: NDArray[np.floating], whole: NDArray[np.floating]) -> float:
    powers = [np.square(x, dtype=np.float64).mean() for x in (part, whole)]
    return float(10 * np.log10(powers[0] / powers[1]))


def spectra(audio: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log magnitudes of frames of 32 ms: what of a clip does not depend on phase."""
    frames = audio[: len(audio) // 512 * 512].reshape(-1, 512) * np.hanning(512)
    return np.log(np.abs(np.fft.rfft(frames)) + 1e-3)


def band_share(audio: NDArray[np.float32], low: float, high: float) -> float:
    """Share of the energy between two frequencies, Hz."""
    energy = np.abs(np.fft.rfft(audio)) ** 2
    frequency = np.fft.rfftfreq(len(audio), 1 / RATE)
    return float(energy[(frequency >= low) & (frequency < high)].sum() / energy.sum())


@pytest.mark.parametrize(
    ("kind", "strength", "snr_db"),
    [("white", 1.0, 0.0), ("white", 0.4, 27.0), ("pink", 0.6, 18.0), ("hum", 0.5, 20.0)],
)
def test_what_is_added_has_the_stated_power(kind: str, strength: float, snr_db: float) -> None:
    added = damaged(kind, TONE, strength) - TONE
    assert decibels(TONE, added) == pytest.approx(snr_db, abs=0.01)


def test_noises_have_their_colours() -> None:
    """White power is the same in every Hz, pink in every octave; hum is below 500 Hz."""
    white, pink, hum = (damaged(k, TONE, 1.0) - TONE for k in ("white", "pink", "hum"))
    assert band_share(white, 4000, 8000) == pytest.approx(0.5, abs=0.02)
    octaves = [band_share(pink, f, 2 * f) for f in (250.0, 500.0, 1000.0, 2000.0)]
    assert max(octaves) / min(octaves) < 1.2
    assert band_share(hum, 40, 500) > 0.99


def test_clipping_cuts_at_the_stated_level() -> None:
    loud = damaged("clipping", TONE, 2 / 3)  # 20 dB below the peak
    assert np.abs(loud).max() == pytest.approx(0.05, rel=1e-3)
    # A sine is above a tenth of its peak for all but 2 / pi x asin(0.1) of the time.
    assert (np.abs(loud) > 0.0499).mean() == pytest.approx(1 - 2 / np.pi * np.arcsin(0.1), abs=1e-3)


def test_filters_end_where_they_say() -> None:
    """Low pass 8 kHz / 16 ^ 0.5 = 2 kHz; high pass 50 Hz x 32 ^ 0.8 = 800 Hz."""
    low, high = damaged("lowpass", NOISE, 0.5), damaged("highpass", NOISE, 0.8)
    assert band_share(low, 0, 2200) > 0.98
    assert band_share(low, 1000, 1800) == pytest.approx(0.8 / 2.0, abs=0.05)
    assert band_share(high, 0, 700) < 0.01
    assert decibels(high, NOISE) == pytest.approx(10 * np.log10(0.9), abs=0.2)


def test_dropouts_silence_the_stated_share() -> None:
    """Half strength: 15 % of the time in gaps of 40 ms, 8 of the 50 slots of 2 s."""
    muted = damaged("dropouts", NOISE, 0.5)
    assert (muted == 0).mean() == pytest.approx(8 / 50, abs=0.01)
    assert (muted == NOISE).mean() > 0.8


def test_crushing_leaves_so_many_bits() -> None:
    """Strength 1 is 3 bits: steps of a quarter of the peak, from -1 to 1 nine of them."""
    assert len(np.unique(damaged("crush", TONE, 1.0))) == 9
    error = damaged("crush", NOISE, 0.5) - NOISE  # 7.5 bits: uniform in a step
    step = float(np.abs(NOISE).max()) / 2**6.5
    assert error.std() == pytest.approx(step / np.sqrt(12), rel=0.02)


def test_wobble_bends_the_pitch_as_far_as_it_says() -> None:
    """4 % at strength 1: a tone of 997 Hz swings between 957 and 1037 Hz."""
    wobbled = damaged("wobble", TONE, 1.0).astype(np.float64)[200:-200]
    rising = np.flatnonzero((wobbled[:-1] < 0) & (wobbled[1:] >= 0))
    exact = rising + wobbled[rising] / (wobbled[rising] - wobbled[rising + 1])
    frequency = RATE / np.diff(exact)
    assert frequency.max() == pytest.approx(997 * 1.04, abs=4)
    assert frequency.min() == pytest.approx(997 * 0.96, abs=4)


def test_reverberation_outlasts_a_click() -> None:
    """Strength 1: the tail falls by 60 dB in 2.5 s, by 24 dB in the first second."""
    click = np.zeros(2 * RATE, np.float32)
    click[0] = 1.0
    tail = damaged("reverb", click, 1.0)
    early, late = tail[1:1601], tail[RATE : RATE + 1600]
    assert decibels(early, late) == pytest.approx(24, abs=1.5)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_more_strength_is_more_damage_and_a_lower_opinion(kind: str) -> None:
    music = TONE + 0.2 * NOISE
    apart = [float(np.abs(spectra(damaged(kind, music, s)) - spectra(music)).mean()) for s in S]
    assert apart == sorted(apart)
    labels = [opinion(kept_by(kind, s)) for s in (0.0, 0.2, 0.6, 1.0)]
    assert labels == sorted(labels, reverse=True)
    assert labels[0] == 5.0
    assert labels[-1] == pytest.approx(5 - 4 * DEGRADATIONS[kind].loss)


def test_opinions_by_hand() -> None:
    assert kept_by_codec(6, all_levels=6) == 0.875
    assert opinion(kept_by_codec(3, all_levels=6)) == pytest.approx(1 + 4 * 0.875 * 0.5**0.35)
    assert heat(1.15) == pytest.approx(0.5)
    # Four levels of the codec, sampled at 1.15: 0.759 x (1 - 0.475) of the quality is left.
    played = opinion(kept_by_codec(4, all_levels=6), kept_by("policy", heat(1.15)))
    assert played == pytest.approx(1 + 4 * 0.7592 * 0.525, abs=1e-3)
