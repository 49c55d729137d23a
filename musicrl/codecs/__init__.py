"""Codecs: audio to discrete codes and back. `CODECS` names the kinds that a world may hold."""

from musicrl.codecs.base import Codec
from musicrl.codecs.spectral import SpectralCodec

CODECS = {"spectral": SpectralCodec}

__all__ = ["CODECS", "Codec", "SpectralCodec"]
