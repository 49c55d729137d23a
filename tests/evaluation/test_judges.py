"""The judges' arithmetic, with tag scores made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from musicrl.evaluation.judges import (
    CALIBRATION,
    TAGS_OF,
    TagHearing,
    TagJudge,
    TagScores,
    asked_value,
    contrast,
    read_calibration,
    write_calibration,
)
from musicrl.evaluation.musicnn import TAGS, Tagger
from musicrl.types import Clips, Prompt
from musicrl.world import SHIPPED as TINY

SHIPPED = TINY / CALIBRATION


def scores(**tags: float) -> np.ndarray:
    """Standard scores [50], 0 but for the named tags."""
    row = np.zeros(len(TAGS))
    for tag, value in tags.items():
        row[TAGS.index(tag)] = value
    return row


def asking(**attributes: str) -> Prompt:
    return Prompt(id="p", text="x", attributes=tuple(attributes.items()))


class Heard:
    """Tag scores of clips that nobody has to hear."""

    def __init__(self, *rows: np.ndarray) -> None:
        self.rows = np.stack(rows)

    def __call__(self, clips: Clips) -> np.ndarray:
        return self.rows


class CountingTagger(Tagger):
    """A tagger of constant opinion that counts the clips it hears."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.probabilities, self.heard = probabilities, 0

    def hear(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.heard += len(audio)
        return self.probabilities.expand(len(audio), -1), audio[:, :2]


CLIPS = Clips(audio=np.zeros((1, 16_000), np.float32), sample_rate=16_000)


def test_every_tag_of_the_map_exists() -> None:
    implied = {tag for values in TAGS_OF.values() for tags in values.values() for tag in tags}
    assert implied <= set(TAGS)


def test_a_contrast_is_own_tags_minus_the_others() -> None:
    assert contrast(scores(slow=1.0, fast=-0.5), "tempo", "slow") == 1.5
    # loud has one tag, soft has two: 2 - (1 + 0) / 2 and back.
    assert contrast(scores(loud=2.0, soft=1.0), "loudness", "loud") == 1.5
    assert contrast(scores(loud=2.0, soft=1.0), "loudness", "soft") == -1.5


def test_a_tag_shared_by_two_instruments_never_counts_against_either() -> None:
    heard = scores(guitar=3.0)
    assert contrast(heard, "instrument", "acoustic guitar") == 3.0
    assert contrast(heard, "instrument", "electric guitar") == 1.5
    # Not the flute's: piano harpsichord guitar rock cello strings harp choir choral.
    assert contrast(heard, "instrument", "flute") == pytest.approx(-3 / 9)


def test_a_judge_averages_over_what_the_caption_asks_for() -> None:
    row = scores(slow=1.0, fast=-0.5, loud=2.0, soft=1.0)
    judge = TagJudge(Heard(row), name="tagger", attributes=tuple(TAGS_OF))  # type: ignore[arg-type]
    assert judge([asking(tempo="slow", loudness="loud")], CLIPS).tolist() == [1.5]
    assert judge([asking(tempo="slow", instrument="organ")], CLIPS).tolist() == [1.5]
    assert judge([asking(tempo="slow", loudness="soft")], CLIPS).tolist() == [0.0]


def test_a_caption_that_implies_no_tag_has_no_score() -> None:
    judge = TagJudge(Heard(scores(), scores(slow=1.0)), name="tempo", attributes=("tempo",))  # type: ignore[arg-type]
    found = judge([asking(tempo="moderate", loudness="loud"), asking(tempo="slow")], CLIPS)
    np.testing.assert_array_equal(found, [np.nan, 1.0])


def test_words_are_read_only_where_attributes_are_unknown() -> None:
    free = Prompt(id="p", text="A Slow piece for harp, quickly forgotten")
    assert asked_value(free, "tempo") == "slow"
    assert asked_value(free, "instrument") == "harp"  # and no harpsichord
    assert asked_value(free, "loudness") is None
    assert asked_value(Prompt(id="p", text="slow, then fast"), "tempo") is None
    assert asked_value(asking(instrument="flute"), "tempo") is None
    assert (
        asked_value(Prompt(id="p", text="slow", attributes=(("tempo", "fast"),)), "tempo") == "fast"
    )


def test_standard_scores_are_log_odds_against_the_calibration() -> None:
    mean, deviation = read_calibration(SHIPPED)
    shift = torch.tensor(mean + 2.0 * deviation).float()
    tagger = CountingTagger(shift.sigmoid())
    np.testing.assert_allclose(
        TagScores(TagHearing(tagger), SHIPPED)(CLIPS), np.full((1, 50), 2.0), atol=1e-3
    )


def test_several_judges_hear_the_same_clips_once_and_broken_ones_have_no_score() -> None:
    audio = np.zeros((3, 16_000), np.float32)
    audio[1, 5] = np.nan
    clips = Clips(audio=audio, sample_rate=16_000)
    tagger = CountingTagger(torch.full((50,), 0.5))
    shared = TagScores(TagHearing(tagger, batch=2), SHIPPED)
    prompts = [asking(tempo="slow", loudness="loud")] * 3
    for name in ("tempo", "loudness"):
        judged = TagJudge(shared, name=name, attributes=(name,))(prompts, clips)
        assert np.isfinite(judged).tolist() == [True, False, True]
    features = shared.hearing.features(clips)
    assert np.isfinite(features).all(1).tolist() == [True, False, True]
    assert tagger.heard == 3
    shared(Clips(audio=audio[:1], sample_rate=16_000))
    assert tagger.heard == 4


def test_the_calibration_is_of_real_clips() -> None:
    mean, deviation = read_calibration(SHIPPED)
    assert mean.shape == deviation.shape == (50,)
    assert (mean < 0).mean() > 0.9  # most tags are rare
    assert (deviation > 0.3).all()


def test_a_written_calibration_reads_back(tmp_path: Path) -> None:
    mean, deviation = np.linspace(-6, -1, 50), np.linspace(0.5, 3, 50)
    write_calibration(tmp_path / CALIBRATION, mean, deviation, clips=7)
    read = read_calibration(tmp_path / CALIBRATION)
    np.testing.assert_allclose(read, (mean, deviation), atol=1e-4)


def test_a_missing_or_incomplete_calibration_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="musicrl pretrain calibration"):
        read_calibration(tmp_path / CALIBRATION)
    (tmp_path / CALIBRATION).write_text('{"tags": {"guitar": [0, 1]}}')
    with pytest.raises(ValueError, match=r"calibration\.json holds no mean"):
        read_calibration(tmp_path / CALIBRATION)
