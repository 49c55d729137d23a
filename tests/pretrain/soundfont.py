"""A real SoundFont 2 file of one looped sawtooth, so that rendering is tested without a download."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RATE, PERIOD, PERIODS = 32_000, 100, 64
"""The sample: 64 periods of 100 samples at 32 kHz, a 320 Hz tone (about MIDI 63)."""
ROOT_KEY, SAMPLE_MODES, SAMPLE_ID, INSTRUMENT = 58, 54, 53, 41
"""Generator numbers of the SoundFont 2.01 specification, section 8.1.2."""


def write_soundfont(path: Path, presets: Sequence[tuple[int, int]]) -> Path:
    """One sawtooth under every (bank, program) of `presets`."""
    sample = np.tile(np.linspace(-0.5, 0.5, PERIOD), PERIODS)
    pcm = (sample * 32767).astype("<i2").tobytes() + bytes(2 * 46)
    headers = [
        _name(f"p{program}") + struct.pack("<HHHIII", program, bank, index, 0, 0, 0)
        for index, (bank, program) in enumerate(sorted(presets))
    ]
    headers.append(_name("EOP") + struct.pack("<HHHIII", 0, 0, len(presets), 0, 0, 0))
    bags = [struct.pack("<HH", index, 0) for index in range(len(presets) + 1)]
    generators = [struct.pack("<HH", INSTRUMENT, 0)] * len(presets) + [bytes(4)]
    zones = [(SAMPLE_MODES, 1), (ROOT_KEY, 63), (SAMPLE_ID, 0)]
    length = PERIOD * PERIODS
    records = {
        b"phdr": b"".join(headers),
        b"pbag": b"".join(bags),
        b"pmod": bytes(10),
        b"pgen": b"".join(generators),
        b"inst": _name("saw") + struct.pack("<H", 0) + _name("EOI") + struct.pack("<H", 1),
        b"ibag": struct.pack("<HHHH", 0, 0, len(zones), 0),
        b"imod": bytes(10),
        b"igen": b"".join(struct.pack("<HH", *zone) for zone in zones) + bytes(4),
        b"shdr": _name("saw")
        + struct.pack("<IIIIIBbHH", 0, length, PERIOD, length - PERIOD, RATE, 63, 0, 0, 1)
        + _name("EOS")
        + bytes(26),
    }
    info = _chunk(b"ifil", struct.pack("<HH", 2, 1)) + _chunk(b"INAM", b"saw\0")
    body = _list(b"INFO", info) + _list(b"sdta", _chunk(b"smpl", pcm))
    body += _list(b"pdta", b"".join(_chunk(tag, data) for tag, data in records.items()))
    path.write_bytes(_chunk(b"RIFF", b"sfbk" + body))
    return path


def _chunk(tag: bytes, data: bytes) -> bytes:
    return tag + struct.pack("<I", len(data)) + data


def _list(kind: bytes, data: bytes) -> bytes:
    return _chunk(b"LIST", kind + data)


def _name(text: str) -> bytes:
    return text.encode().ljust(20, b"\0")
