"""Codecs: audio to discrete codes and back."""

from musicrl.codecs.base import Codec
from musicrl.codecs.soundstream import SoundStream
from musicrl.codecs.spectral import SpectralCodec
from musicrl.codecs.table import CODECS, load_codec

__all__ = ["CODECS", "Codec", "SoundStream", "SpectralCodec", "load_codec"]
