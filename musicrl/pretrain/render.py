"""Rendering: the plan of a clip to audio with a General-MIDI soundfont, bit-deterministic."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from musicrl.pretrain.attributes import INSTRUMENTS, PEAKS
from musicrl.pretrain.excerpts import CHORDS, DRUMS, MELODY, Excerpt

SOUNDFONTS = (
    Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"),
    Path("/usr/share/sounds/sf3/FluidR3Mono_GM.sf3"),
)
"""Where Debian's fluid-soundfont-gm and fluidr3mono-gm-soundfont (both MIT) install."""
OVERSAMPLING = 2
ACCOMPANIMENT_VELOCITY, DRUM_VELOCITY = 0.62, 0.85
"""Relative to the melody's."""


def find_soundfont(path: Path | None) -> Path:
    """`path`, or the first installed default. Raises FileNotFoundError saying how to get one."""
    candidates = SOUNDFONTS if path is None else (path,)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    named = " or ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"no soundfont at {named}: install Debian's fluid-soundfont-gm or pass --soundfont"
    )


def require_synthesiser() -> None:
    """Raise ModuleNotFoundError, saying what to install, where there is no synthesiser."""
    if find_spec("tinysoundfont") is None:
        raise ModuleNotFoundError(
            "rendering needs tinysoundfont: pip install --no-deps tinysoundfont"
        )


class Renderer:
    """A synthesiser holding one soundfont."""

    def __init__(self, soundfont: Path, *, sample_rate: int, seconds: float) -> None:
        import tinysoundfont

        self.sample_rate, self.num_samples = sample_rate, round(sample_rate * seconds)
        self._synth_rate = OVERSAMPLING * sample_rate
        self._synth = tinysoundfont.Synth(gain=-6, samplerate=self._synth_rate)
        self._font = self._synth.sfload(str(soundfont), max_voices=64)

    def render(self, excerpt: Excerpt) -> NDArray[np.int16]:
        """Mono int16 [N] at the level that the excerpt's loudness names."""
        instrument = INSTRUMENTS[excerpt.attributes.instrument]
        self._synth.program_select(MELODY, self._font, 0, instrument.program)
        self._synth.program_select(CHORDS, self._font, 0, instrument.chords)
        self._synth.program_select(DRUMS, self._font, 128, 0, True)
        stereo = np.concatenate([*self._play(excerpt)]).reshape(-1, 2)
        self._synth.sounds_off()
        self._synth.generate(self._synth_rate // 50)
        mono = soxr.resample(stereo.mean(axis=1), self._synth_rate, self.sample_rate)
        mono = np.pad(mono, (0, max(self.num_samples - len(mono), 0)))[: self.num_samples]
        peak = max(float(np.abs(mono).max()), 1e-6)
        level = PEAKS[excerpt.attributes.loudness] / peak
        return (np.clip(mono * level, -1, 1) * 32767).astype(np.int16)

    def _play(self, excerpt: Excerpt) -> list[NDArray[np.float32]]:
        total = self.num_samples * OVERSAMPLING
        velocities = {
            MELODY: excerpt.velocity,
            CHORDS: int(excerpt.velocity * ACCOMPANIMENT_VELOCITY),
            DRUMS: int(excerpt.velocity * DRUM_VELOCITY),
        }
        changes = []
        for onset, duration, pitch, channel in excerpt.events:
            changes.append((round(onset * self._synth_rate), 1, channel, pitch))
            changes.append((round((onset + duration) * self._synth_rate), 0, channel, pitch))
        blocks, position = [], 0
        for time, is_on, channel, pitch in sorted(changes):
            if min(time, total) > position:
                blocks.append(self._generate(min(time, total) - position))
                position = min(time, total)
            if is_on:
                self._synth.noteon(channel, pitch, velocities[channel])
            else:
                self._synth.noteoff(channel, pitch)
        if position < total:
            blocks.append(self._generate(total - position))
        return blocks

    def _generate(self, num_samples: int) -> NDArray[np.float32]:
        return np.frombuffer(bytes(self._synth.generate(num_samples)), dtype=np.float32)
