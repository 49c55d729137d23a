"""Graded degradations of audio, and the opinion that each stands for.

A degradation has a strength from 0 (nothing is done) to 1 and takes a share of a clip's quality:

    opinion = 1 + 4 x (share that the codec keeps) x (1 - strength x share lost at strength 1)

so that shares multiply when one thing comes upon another, and 5 is a clip as it was rendered. The
shares and the physical scales (dB, octaves, bits, share of time) are THIS PROJECT'S CHOICE: nobody
rated these clips. Knows audio and random numbers; no model, no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.signal import butter, fftconvolve, sosfilt

from musicrl.rewards.mos import HIGHEST, LOWEST

Audio = NDArray[np.float32]
Degrade = Callable[[Audio, float, int, np.random.Generator], Audio]

CODEC_KEEPS_ALL = 0.875
"""Share of quality that all levels of the codec keep."""
CODEC_EXPONENT = 0.35
"""Of the share of the levels that are kept: quality falls slowly at first."""
COLDEST, HOTTEST = 0.7, 1.6
"""Temperatures of sampling that have strength 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """A kind of damage."""

    apply: Degrade
    """(audio float32 [N], strength, sample rate in Hz, random numbers) to audio float32 [N]."""
    loss: float
    """Share of the quality that is lost at strength 1."""


def add_white(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """White noise, 45 - 45 x strength dB below the clip."""
    return mixed(audio, rng.standard_normal(len(audio)), snr_db=45 - 45 * strength)


def add_pink(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Noise of 1/f power, 45 - 45 x strength dB below the clip."""
    spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return mixed(audio, np.fft.irfft(spectrum, len(audio)), snr_db=45 - 45 * strength)


def add_hum(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Mains hum: 50 or 60 Hz and its harmonics up to the eighth, 40 - 40 x strength dB below."""
    time = np.arange(len(audio)) / rate
    frequency, phases = rng.choice([50.0, 60.0]), rng.uniform(0, 2 * np.pi, 8)
    partials = [
        np.sin(2 * np.pi * frequency * (n + 1) * time + phase) / (n + 1)
        for n, phase in enumerate(phases)
    ]
    return mixed(audio, np.sum(partials, axis=0), snr_db=40 - 40 * strength)


def clip_peaks(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Hard clipping 30 x strength dB below the peak."""
    limit = float(np.abs(audio).max()) * 10 ** (-30 * strength / 20)
    return np.clip(audio, -limit, limit).astype(np.float32)


def low_pass(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Nothing above 8 kHz / 16 ^ strength: from 8 kHz down to 500 Hz, four octaves."""
    cutoff = min(8000 / 16**strength, 0.49 * rate)
    return filtered(audio, butter(8, cutoff, "lowpass", fs=rate, output="sos"))


def high_pass(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Nothing below 50 Hz x 32 ^ strength: from 50 Hz up to 1.6 kHz, five octaves."""
    return filtered(audio, butter(8, 50 * 32**strength, "highpass", fs=rate, output="sos"))


def drop_out(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Silence in gaps of 40 ms that make up 0.3 x strength of the time (rounded up to a gap)."""
    gap = round(0.04 * rate)
    slots = len(audio) // gap
    muted = rng.choice(slots, size=min(slots, int(np.ceil(0.3 * strength * slots))), replace=False)
    gain = np.ones(len(audio))
    for slot in muted:
        gain[slot * gap : (slot + 1) * gap] = 0
    edge = max(1, rate // 500)  # 2 ms: a fade, not a click
    smooth = np.convolve(gain, np.ones(edge) / edge, mode="same")
    return (audio * np.minimum(gain, smooth)).astype(np.float32)


def crush(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Quantised to 12 - 9 x strength bits of its own peak."""
    step = max(float(np.abs(audio).max()), 1e-9) / 2 ** (11 - 9 * strength)
    return (np.round(audio / step) * step).astype(np.float32)


def wobble(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """Speed that swings by 4 % x strength, four to seven times a second."""
    time, frequency = np.arange(len(audio)) / rate, rng.uniform(4, 7)
    swing = 0.04 * strength / (2 * np.pi * frequency)  # seconds of lead and lag
    lead = swing * rate * np.sin(2 * np.pi * frequency * time + rng.uniform(0, 2 * np.pi))
    where = (np.arange(len(audio)) + lead)[None]
    warped: NDArray[np.float32] = map_coordinates(audio, where, order=3, mode="nearest")
    return warped.astype(np.float32)


def reverberate(audio: Audio, strength: float, rate: int, rng: np.random.Generator) -> Audio:
    """A diffuse tail of 0.3 + 2.2 x strength s (60 dB), 15 - 25 x strength dB below the clip."""
    seconds = 0.3 + 2.2 * strength
    time = np.arange(round(seconds * rate)) / rate
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    tail: NDArray[np.float64] = fftconvolve(audio, response)[: len(audio)]
    return mixed(audio, tail, snr_db=15 - 25 * strength)


DEGRADATIONS: Mapping[str, Degradation] = MappingProxyType(
    {
        "white": Degradation(apply=add_white, loss=1.0),
        "pink": Degradation(apply=add_pink, loss=1.0),
        "hum": Degradation(apply=add_hum, loss=0.9),
        "clipping": Degradation(apply=clip_peaks, loss=1.0),
        "lowpass": Degradation(apply=low_pass, loss=0.8),
        "highpass": Degradation(apply=high_pass, loss=0.8),
        "dropouts": Degradation(apply=drop_out, loss=1.0),
        "crush": Degradation(apply=crush, loss=1.0),
        "wobble": Degradation(apply=wobble, loss=0.7),
        "reverb": Degradation(apply=reverberate, loss=0.7),
    }
)
"""Kinds of damage to audio, by name."""
TOKENS, CODEC, POLICY = "tokens", "codec", "policy"
"""Kinds that need models: codes replaced at random, fewer levels, and what a policy plays."""
TOKENS_LOSS, POLICY_LOSS = 1.0, 0.95
"""Shares lost at strength 1: half of the codes replaced; sampling at temperature 1.6."""
REPLACED_AT_ONE = 0.5
"""Share of the codes that are replaced at strength 1."""


def degrade(
    kind: str, audio: Audio, *, strength: float, sample_rate: int, rng: np.random.Generator
) -> Audio:
    """Audio float32 [N] with damage of a kind; it may leave [-1, 1]."""
    return DEGRADATIONS[kind].apply(audio, strength, sample_rate, rng)


def opinion(*kept: float) -> float:
    """The mean opinion score of a clip that keeps these shares of its quality, one upon another."""
    return LOWEST + (HIGHEST - LOWEST) * float(np.prod(kept))


def kept_by(kind: str, strength: float) -> float:
    """Share of quality that is left under a kind of damage."""
    losses = {TOKENS: TOKENS_LOSS, POLICY: POLICY_LOSS}
    loss = losses[kind] if kind in losses else DEGRADATIONS[kind].loss
    return 1 - loss * strength


def kept_by_codec(levels: int, *, all_levels: int) -> float:
    """Share of quality that so many of the codec's levels keep."""
    return float(CODEC_KEEPS_ALL * (levels / all_levels) ** CODEC_EXPONENT)


def heat(temperature: float) -> float:
    """The strength that a temperature of sampling stands for."""
    return (temperature - COLDEST) / (HOTTEST - COLDEST)


def mixed(audio: Audio, other: NDArray[np.floating], *, snr_db: float) -> Audio:
    """Audio plus `other`, whose power is brought to `snr_db` dB below that of the audio."""
    powers = [np.square(x, dtype=np.float64).mean() for x in (audio, other)]
    gain = float(np.sqrt(powers[0] / max(powers[1], 1e-20) * 10 ** (-snr_db / 10)))
    return (audio + gain * other.astype(np.float64)).astype(np.float32)


def filtered(audio: Audio, sections: NDArray[np.float64]) -> Audio:
    """Audio through a filter of second-order sections."""
    passed: NDArray[np.float64] = sosfilt(sections, audio)
    return passed.astype(np.float32)
