"""Diversity of a set of clips: what a policy that found one good clip would lose.

Of its tokens, of its embeddings, and of the sound itself. Pure functions of arrays; no caption is
read and no model asked. None of it is a reward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.music import PITCH_HOP, Sounding, leading_classes
from musicrl.types import Clips

FULL_SCALE = 0.999
"""Magnitude from which a sample counts as clipped."""
CLIPPED_SAMPLES = 3
"""Consecutive samples at full scale, of one sign, that make a clip a clipped one (this project's
choice: a lone peak may touch full scale)."""


def distinct(tokens: NDArray[np.integer], n: int) -> float:
    """Different n-grams of one stream over all its n-grams, tokens [B, S] (distinct-n, Li et al.
    2016, arXiv 1510.03055).

    A set of more tokens scores lower: compare sets of as many clips of one length. NaN for clips
    shorter than n.
    """
    windows = np.lib.stride_tricks.sliding_window_view(tokens, min(n, tokens.shape[1]), axis=1)
    grams = windows.reshape(-1, windows.shape[2])
    return len(np.unique(grams, axis=0)) / len(grams) if tokens.shape[1] >= n else float("nan")


def token_entropy(tokens: NDArray[np.integer]) -> float:
    """Entropy, nats, of the histogram of all tokens [B, S] of one stream: 0 where one token is
    played throughout, the log of the vocabulary where all are as frequent."""
    _, counts = np.unique(tokens, return_counts=True)
    share = counts / counts.sum()
    return max(0.0, float(-(share * np.log(share)).sum()))


def cosine_spread(embeddings: NDArray[np.floating]) -> Figure:
    """Mean cosine distance, 0 to 2, between two clips of [B, D].

    The standard error is that of a mean over pairs, twice that over the clips' own means (Hoeffding
    1948). NaN for one clip.
    """
    B = len(embeddings)
    if B < 2:
        return Figure(mean=float("nan"), standard_error=float("nan"), count=B)
    own = own_spread(embeddings)
    error = 2 * float(own.std(ddof=1)) / np.sqrt(B) if B > 2 else float("nan")
    return Figure(mean=float(own.mean()), standard_error=error, count=B)


def own_spread(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean cosine distance of each clip of [B, D] from the B - 1 others, float64 [B]."""
    unit = embeddings.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = np.minimum(unit @ unit.T, 1.0)
    own: NDArray[np.float64] = 1 - (similarity.sum(1) - similarity.diagonal()) / (len(unit) - 1)
    return own


def cosine_spread_within(embeddings: NDArray[np.floating], groups: Sequence[str]) -> Figure:
    """The same between the clips [B, D] of one prompt: the mean over the prompts that have several,
    with the standard error over prompts. `groups` names the prompt of each clip."""
    names = np.array(groups)
    means = [
        cosine_spread(embeddings[names == name]).mean
        for name in dict.fromkeys(groups)
        if (names == name).sum() > 1
    ]
    return figure(np.array(means, np.float64))


def longest_note(clips: Clips) -> NDArray[np.float64]:
    """Longest time, s, that one pitch class leads the clip without another one, float64 [B].

    Frames and their leading class are those of the judge `pitch-variety`. Silence neither ends a
    run nor adds to it, so that one note repeated counts as it does held (this project's choice). 0
    for silence, NaN for clips that are not finite.
    """
    seconds = PITCH_HOP / clips.sample_rate
    runs = [longest_run(row) * seconds for row in leading_classes(clips)]
    return np.where(_finite(clips), runs, np.nan)


def longest_run(values: NDArray[np.integer]) -> int:
    """Most consecutive equal values."""
    if not len(values):
        return 0
    changes = np.flatnonzero(np.diff(values)) + 1
    return int(np.diff([0, *changes, len(values)]).max())


def silent(clips: Clips) -> NDArray[np.float64]:
    """1.0 for a clip without a frame louder than -60 dB (the judge `sounding`), else 0; NaN for
    clips that are not finite. float64 [B]."""
    sounding = Sounding()((), clips)
    return np.where(np.isnan(sounding), np.nan, sounding == 0).astype(np.float64)


def clipped(clips: Clips) -> NDArray[np.float64]:
    """1.0 for a clip that stays at full scale for `CLIPPED_SAMPLES`, else 0; NaN for clips that are
    not finite. float64 [B]."""
    found = [
        any(longest_true(side * row >= FULL_SCALE) >= CLIPPED_SAMPLES for side in (1, -1))
        for row in clips.audio
    ]
    return np.where(_finite(clips), found, np.nan).astype(np.float64)


def longest_true(flags: NDArray[np.bool_]) -> int:
    """Most consecutive true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _finite(clips: Clips) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(clips.audio), axis=1)
    return finite
