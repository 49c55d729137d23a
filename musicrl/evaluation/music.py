"""Judges that measure the sound itself, by published descriptors and no trained model.

A reward that rises while these fall was bought with music. All have the signature of a reward and
none is in the table of rewards; a clip that is not finite has no score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import find_peaks
from torch import Tensor, nn

from musicrl.prompts import attribute
from musicrl.types import Clips, Prompt

PROMINENCE = 0.4
"""Of an onset, relative to the clip's strong ones (98th percentile of the flux)."""
MODERATE = 3.1
"""Onsets a second that are neither slow nor fast, in this world's captions."""
DIRECTION = {"slow": -1.0, "fast": 1.0}
QUIET = 10 ** (-60 / 20)
"""Root mean square, full scale = 1, below which a frame is silent."""
LOWEST, HIGHEST = 100.0, 2000.0
"""Hz: the range that pitch classes are read from."""
PITCH_WINDOW, PITCH_HOP = 4096, 1024
"""Samples of the frames that pitch classes are read in, and between them."""


class OnsetTempo:
    """Does the clip move as its caption says? The log of its onset rate over `MODERATE`, positive
    for a fast clip of a 'fast' caption and for a slow clip of a 'slow' one; NaN where the caption
    says neither."""

    name = "onset-tempo"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B]."""
        asked = [DIRECTION.get(attribute(p, "tempo") or "", np.nan) for p in prompts]
        rates = onset_rates(clips)
        floor = clips.sample_rate / clips.audio.shape[1]  # one onset in the whole clip
        moves: NDArray[np.float64] = np.array(asked) * np.log(np.maximum(rates, floor) / MODERATE)
        return moves.astype(np.float32)


class PitchVariety:
    """Entropy, nats, of the pitch classes that lead the clip's frames, each by its time: 0 for one
    note held or repeated, ln 12 at most; NaN for silence."""

    name = "pitch-variety"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B]."""
        return np.array([_variety(row) for row in leading_classes(clips)], np.float32)


class Sounding:
    """Share of the clip, in frames of 50 ms, that is louder than -60 dB of full scale."""

    name = "sounding"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B]."""
        size = clips.sample_rate // 20
        whole = clips.audio.shape[1] // size * size
        frames = clips.audio[:, :whole].reshape(len(clips.audio), -1, size).astype(np.float64)
        share = (np.sqrt((frames**2).mean(2)) > QUIET).mean(1)
        return np.where(np.isfinite(clips.audio).all(1), share, np.nan).astype(np.float32)


class Clipping:
    """Share of the clip's samples at full scale or beyond, which a player or a file cuts off."""

    name = "clipping"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B]."""
        share = (np.abs(clips.audio) >= 1).mean(1)
        return np.where(np.isfinite(clips.audio).all(1), share, np.nan).astype(np.float32)


def onset_rates(clips: Clips) -> NDArray[np.float64]:
    """Onsets a second, float64 [B]: peaks of the spectral flux of log magnitudes (Dixon 2006).

    On clips of this project's tiny world, rates correlate by about 0.75 with those of the score.
    """
    hop = clips.sample_rate // 100
    audio, finite = _finite(clips)
    level = audio.abs().amax(1, keepdim=True).clamp(min=1e-9)
    spectra = torch.log1p(_spectra(audio / level, 1024, hop))
    flux = (spectra[:, :, 2:] - spectra[:, :, :-2]).clamp(min=0).sum(1).numpy().astype(np.float64)
    strong = np.maximum(np.percentile(flux, 98, axis=1, keepdims=True), 1e-9)
    seconds = clips.audio.shape[1] / clips.sample_rate
    return np.where(finite, [_peaks(row) / seconds for row in flux / strong], np.nan)


def _peaks(flux: NDArray[np.float64]) -> int:
    """Peaks at least 50 ms apart; a clip may begin and end with one."""
    padded = np.concatenate([[0.0], flux, [0.0]])
    return len(find_peaks(padded, prominence=PROMINENCE, distance=5)[0])


def leading_classes(clips: Clips) -> list[NDArray[np.int64]]:
    """The strongest of the 12 pitch classes in each frame that is not silent, of each clip."""
    size = PITCH_WINDOW
    audio, finite = _finite(clips)
    spectra = _spectra(audio, size, PITCH_HOP)
    frequency = torch.arange(size // 2 + 1) * clips.sample_rate / size
    used = (frequency >= LOWEST) & (frequency <= HIGHEST)
    pitch = (12 * torch.log2(frequency[used] / 440)).round().long() % 12
    energy = spectra[:, used].square()
    chroma = torch.zeros(len(audio), 12, energy.shape[2]).index_add_(1, pitch, energy)
    sounds = (energy.sum(1) > (QUIET * size / 2) ** 2).numpy() & finite[:, None]
    leaders = chroma.argmax(1).numpy()
    return [row[heard] for row, heard in zip(leaders, sounds, strict=True)]


def _variety(classes: NDArray[np.int64]) -> float:
    if not len(classes):
        return float("nan")
    share = np.bincount(classes, minlength=12) / len(classes)
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())


def _finite(clips: Clips) -> tuple[Tensor, NDArray[np.bool_]]:
    """Audio float32 [B, N], with silence for clips that are not finite, and which are."""
    finite = np.logical_and.reduce(np.isfinite(clips.audio), axis=1)
    return torch.from_numpy(np.where(finite[:, None], clips.audio, 0).astype(np.float32)), finite


def _spectra(audio: Tensor, size: int, hop: int) -> Tensor:
    """Magnitudes [B, size / 2 + 1, frames], three frames at least: silence follows a shorter clip."""
    missing = max(size // 2 + 1, 2 * hop) - audio.shape[1]
    audio = nn.functional.pad(audio, (0, max(missing, 0)))
    window = torch.hann_window(size)
    return torch.stft(audio, size, hop, window=window, return_complex=True).abs()
