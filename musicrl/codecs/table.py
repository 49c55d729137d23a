"""The codecs that a world may hold, and which of them a file is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from musicrl.checkpoint import load_tensors
from musicrl.closest import closest
from musicrl.codecs.base import Codec
from musicrl.codecs.soundstream import SOUNDSTREAM, SoundStream
from musicrl.codecs.spectral import SpectralCodec

SPECTRAL = "spectral"
CODECS: Mapping[str, Callable[[Path], Codec]] = MappingProxyType(
    {SPECTRAL: SpectralCodec.from_file, SOUNDSTREAM: SoundStream.from_file}
)
"""The reader of a file, by the family that the file names; a file that names none is spectral."""


def load_codec(path: Path) -> Codec:
    """The codec of a file. Raises FileNotFoundError or ValueError naming the file."""
    _, config = load_tensors(path, kind="codec")
    family = config.get("family", SPECTRAL)
    if family not in CODECS:
        raise ValueError(f"{path} holds a codec {family!r}{closest(family, list(CODECS))}")
    return CODECS[family](path)
