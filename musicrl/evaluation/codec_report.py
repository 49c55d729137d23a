"""What a codec keeps of real clips, level by level, and beside another clip: `musicrl codec`.

    source of clips -> real | 1 .. Q levels | another clip     (columns)

`another clip` is the floor: what the figures say of the next clip's own sound. Where clips come from
is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from musicrl.bounds import at_least
from musicrl.codecs.base import Codec
from musicrl.codecs.table import load_codec
from musicrl.evaluation.document import terminal_table
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.judges import CALIBRATION, TagHearing, TagScores, TopInstrument
from musicrl.evaluation.musicnn import Tagger
from musicrl.evaluation.pitch import MISSING, has_tracker, tracks
from musicrl.evaluation.reconstruction import (
    REAL,
    Columns,
    pitch_columns,
    spectral_columns,
    stable,
    through,
)
from musicrl.evaluation.reference import RealClips
from musicrl.evaluation.table import columns
from musicrl.evaluation.visqol import require_visqol, visqol_scores
from musicrl.rewards.base import Reward
from musicrl.textfile import write_text
from musicrl.types import Clips
from musicrl.world import find_world

OTHER = "another clip"
Load = Callable[[Path, Codec, int], RealClips]
"""Clips of a source for a codec, so many at most."""


@dataclass(frozen=True, kw_only=True)
class CodecReportConfig:
    """Measure what the codec keeps of real clips."""

    sources: tuple[Path, ...] = ()
    """Soundfonts (.sf2, .sf3) that play the held-out tunes, and folders of clips (`musicrl pretrain
    world`, `recordings`); none: FluidR3 GM where Debian installs it."""
    soundfont: tuple[Path, ...] = ()
    """More soundfonts."""
    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    codec: Path | None = None
    """File of another codec (none: the world's)."""
    levels: tuple[int, ...] = ()
    """Numbers of first levels to decode (none: each)."""
    clips: int = 128
    """Clips of a source."""
    seconds: float = 6.0
    """Length of the clips that a soundfont plays."""
    visqol_clips: int = 0
    """Clips of a source that ViSQOL hears as well, some 6 CPU-seconds each and column (needs the
    extra `judges`)."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        at_least(2, clips=self.clips)
        at_least(0, visqol_clips=self.visqol_clips)
        if self.seconds <= 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        if self.visqol_clips:
            require_visqol()


def run_codec_report(
    config: CodecReportConfig, load: Load, console: Console | None = None
) -> dict[str, object]:
    """Measure every source, print a table of each, write the JSON that is asked for; what it holds.

    Raises ValueError for levels that the codec has not, and as `load` does.
    """
    console, folder = console or Console(), find_world(config.weights)
    path = config.codec or folder / "codec.safetensors"
    codec = load_codec(path)
    levels = config.levels or tuple(range(1, codec.num_codebooks + 1))
    if not all(1 <= count <= codec.num_codebooks for count in levels):
        raise ValueError(f"levels are {list(levels)}, but {path} has {codec.num_codebooks}")
    judge = TopInstrument(TagScores(TagHearing(Tagger()), folder / CALIBRATION))
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for source in (*config.sources, *config.soundfont):
        real = load(source, codec, config.clips)
        rows = codec_rows(codec, real, levels, judge, visqol_clips=config.visqol_clips)
        found[str(source)] = rows
        console.print(terminal_table(columns(source.name, rows)))
    if not has_tracker():
        console.print(f"left out: pitch: {MISSING}", soft_wrap=True)
    report = to_report(config, found)
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def to_report(
    config: CodecReportConfig, found: Mapping[str, Mapping[str, Mapping[str, Figure]]]
) -> dict[str, object]:
    """What the JSON file holds."""
    rows = {
        source: {
            name: {key: value.to_json() for key, value in row.items() if value.count}
            for name, row in table.items()
        }
        for source, table in found.items()
    }
    return {"clips": config.clips, "visqol_clips": config.visqol_clips, "sources": rows}


def codec_rows(
    codec: Codec, real: RealClips, levels: Sequence[int], judge: Reward, *, visqol_clips: int = 0
) -> dict[str, dict[str, Figure]]:
    """Figures of the clips themselves (`real`), decoded from their first levels, and of the next
    clip in the place of each.

    Pitch of solos only, and only where the tracker is installed; `judge` says in which share of
    clips the instrument is heard that the caption names.
    """
    audio, rate = real.clips.audio, codec.sample_rate
    rebuilt = through(codec, audio, levels)
    heard = {f"{n} levels": clips for n, clips in zip(levels, rebuilt, strict=True)}
    rows: dict[str, dict[str, NDArray[np.float64]]] = {
        REAL: {},
        **{name: {**spectral_columns(audio, clips, rate)} for name, clips in heard.items()},
        OTHER: {**spectral_columns(audio, np.roll(audio, 1, 0), rate)},
    }
    if has_tracker() and real.solo.any():
        for name, found in _pitch(audio[real.solo], _solos(heard, real.solo), rate).items():
            rows[name] |= found
    for name, clips in {REAL: audio, **heard}.items():
        scores = judge(real.prompts, Clips(audio=clips, sample_rate=rate))
        rows[name][judge.name] = scores.astype(np.float64)
    if visqol_clips:
        for name, clips in {**heard, OTHER: np.roll(audio, 1, 0)}.items():
            pair = audio[:visqol_clips], clips[:visqol_clips]
            rows[name]["visqol"] = visqol_scores(*pair, rate)
    return {
        name: {key: figure(column) for key, column in row.items()} for name, row in rows.items()
    }


def _pitch(
    solos: NDArray[np.float32], heard: Mapping[str, NDArray[np.float32]], rate: int
) -> dict[str, Columns]:
    """Of solos [B, N], of what came back of them, and of the next solo in the place of each."""
    real = tracks(solos, rate)
    return {
        REAL: {"stable-pitch": stable(real)},
        **{name: pitch_columns(real, tracks(clips, rate)) for name, clips in heard.items()},
        **({OTHER: pitch_columns(real, np.roll(real, 1, 0))} if len(real) > 1 else {}),
    }


def _solos(
    heard: Mapping[str, NDArray[np.float32]], solo: NDArray[np.bool_]
) -> dict[str, NDArray[np.float32]]:
    return {name: clips[solo] for name, clips in heard.items()}
