"""ViSQOL: what a listener would say of a clip beside its original, 1 (bad) to 5 (excellent).

The audio mode of Hines et al. (2015; ViSQOL v3, Chinen et al. 2020, arXiv 2004.09584) by the package
`visqol-python`, which needs the original: it measures codecs, never policies. It hardly hears WHAT is
played (another clip of the same kind of music scores far above noise), so read it beside the
scores of another clip.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from musicrl.audio import resample

RATE = 48_000
"""Hz: what the audio mode hears."""
MISSING = "ViSQOL needs visqol-python: pip install 'musicrl[judges]'"


def require_visqol() -> None:
    """Raises ValueError saying what to install where the package is missing."""
    if find_spec("visqol") is None:
        raise ValueError(MISSING)


def visqol_scores(
    real: NDArray[np.float32], other: NDArray[np.float32], sample_rate: int
) -> NDArray[np.float64]:
    """MOS-LQO float64 [B] of clips [B, N] beside their originals [B, N]; about 6 CPU-seconds a clip
    of 6 s. Raises ValueError where the package is not installed."""
    require_visqol()
    from visqol import VisqolApi  # an optional extra

    listener = VisqolApi()
    listener.create(mode="audio")
    pairs = zip(_heard(real, sample_rate), _heard(other, sample_rate), strict=True)
    scores = [listener.measure_from_arrays(a, b, RATE).moslqo for a, b in pairs]
    return np.array(scores, np.float64)


def _heard(clips: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    return resample(clips, sample_rate, RATE).astype(np.float64)
