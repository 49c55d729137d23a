"""The codec's table: its floor and its columns by hand-made codecs, the command by a soundfont."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.cli import dispatch
from musicrl.evaluation.codec_report import CodecReportConfig, codec_rows, run_codec_report
from musicrl.evaluation.judges import TopInstrument
from musicrl.evaluation.musicnn import TAGS
from musicrl.evaluation.reference import RealClips
from musicrl.evaluation.visqol import visqol_scores
from musicrl.types import Clips, Prompt
from tests.evaluation.samples import Samples, melody

RATE = 16_000
visqol = pytest.mark.skipif(
    find_spec("visqol") is None, reason="visqol-python is not installed (the extra `judges`)"
)


def asking(instrument: str) -> Prompt:
    attributes = (("instrument", instrument), ("texture", "solo"))
    return Prompt(id=instrument, text=instrument, attributes=attributes)


class Scores:
    """Standard scores by hand, one row a clip."""

    def __init__(self, *rows: dict[str, float]) -> None:
        self.rows = np.zeros((len(rows), len(TAGS)))
        for number, row in enumerate(rows):
            for tag, score in row.items():
                self.rows[number, TAGS.index(tag)] = score

    def __call__(self, clips: Clips) -> NDArray[np.float64]:
        return self.rows


def test_the_instrument_that_is_heard_most_is_the_one_of_the_highest_mean_score() -> None:
    scores = Scores(
        {"harp": 2.0, "piano": 1.0},
        {"harp": 2.0, "cello": 3.0},  # and no strings: 1.5 in the mean
        {"guitar": 2.0, "rock": 3.0},
        {"guitar": 2.0, "rock": 1.0},
        {},
        {"harp": np.nan},
    )
    prompts = [asking(n) for n in ("piano", "harp", "electric guitar", "acoustic guitar")]
    prompts += [asking("marimba"), asking("harp")]
    clips = Clips(audio=np.zeros((6, 8), np.float32), sample_rate=RATE)
    found = TopInstrument(scores)(prompts, clips)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, [0, 1, 1, 1, np.nan, np.nan])


class Loudest:
    """Hears the instrument of every clip that is loud enough."""

    name = "loud"

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        peaks = np.array([np.abs(row).max() for row in clips.audio])
        return (peaks > 0.1).astype(np.float32)


def test_columns_of_a_codec_that_keeps_all_and_of_another_clip() -> None:
    audio = np.stack([melody(RATE, 1.5), melody(RATE, 1.5)[::-1], 0.2 * melody(RATE, 1.5)])
    real = RealClips(
        clips=Clips(audio=np.ascontiguousarray(audio), sample_rate=RATE),
        prompts=(asking("piano"), asking("harp"), asking("choir")),
    )
    rows = codec_rows(Samples(), real, (1, 2), Loudest())
    assert list(rows) == ["real", "1 levels", "2 levels", "another clip"]
    best, floor = rows["2 levels"], rows["another clip"]
    assert best["chroma-correlation"].mean == pytest.approx(1, abs=1e-3)
    assert floor["chroma-correlation"].mean < 0.9
    assert floor["log-spectral-distance"].mean > 10 * best["log-spectral-distance"].mean
    assert rows["real"]["loud"].mean == best["loud"].mean == pytest.approx(2 / 3)
    assert "loud" not in floor
    if find_spec("swift_f0") is not None:
        assert best["raw-pitch-accuracy"].mean == 1
        assert floor["raw-pitch-accuracy"].mean < 0.9


@visqol
def test_visqol_falls_with_noise() -> None:
    clip = melody(RATE, 1.5)
    noise = np.random.default_rng(0).normal(0, 1, len(clip)).astype(np.float32)
    heard = np.stack([clip, clip + 0.01 * noise, clip + 0.1 * noise])
    same, soft, loud = visqol_scores(np.stack([clip] * 3), heard, RATE)
    assert same > 4.5
    assert same > soft + 0.3
    assert soft > loud + 0.3


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"levels are \[7\], but .*codec.safetensors has 6"):
        run_codec_report(CodecReportConfig(levels=(7,)), lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="clips must be 2 or more, got 1"):
        CodecReportConfig(clips=1)
    with pytest.raises(FileNotFoundError, match=r"no soundfont at .*none\.sf2"):
        dispatch(["codec", str(tmp_path / "none.sf2")])
