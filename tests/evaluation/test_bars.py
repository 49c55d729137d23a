"""What is asked of music: ratios by hand, and which rows have which figures."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.evaluation.bars import BARS, GAP, bar_figures, fast_over_slow, named
from musicrl.evaluation.clipset import SetFigures
from musicrl.evaluation.distance import Distance
from musicrl.evaluation.figures import Figure
from musicrl.evaluation.heldout import EvaluationResult
from musicrl.evaluation.music import OnsetTempo, onset_rates
from musicrl.types import Clips, Prompt

RATE = 16_000


def asking(number: int, tempo: str) -> Prompt:
    return Prompt(id=str(number), text=tempo, attributes=(("tempo", tempo),))


def clicks(*per_second: float) -> Clips:
    """Bursts of noise so many times a second, for 4 s."""
    audio = np.zeros((len(per_second), 4 * RATE), np.float32)
    noise = np.random.default_rng(0).normal(0, 0.3, 800).astype(np.float32)
    for row, rate in zip(audio, per_second, strict=True):
        for start in np.arange(0, 4, 1 / rate) * RATE:
            row[int(start) : int(start) + 800] = noise[: len(row) - int(start)]
    return Clips(audio=audio, sample_rate=RATE)


def test_fast_over_slow_is_the_ratio_of_mean_onset_rates() -> None:
    prompts = [asking(i, tempo) for i, tempo in enumerate(["fast", "slow", "fast", "slow", "any"])]
    clips = clicks(6, 2, 4, 1, 3)
    scores = OnsetTempo()(prompts, clips).astype(np.float64)
    found = fast_over_slow(
        EvaluationResult(prompts=tuple(prompts), columns={"judge/onset-tempo": scores})
    )
    assert found is not None
    fast, slow = onset_rates(clips)[[0, 2]], onset_rates(clips)[[1, 3]]
    assert found.mean == pytest.approx(fast.mean() / slow.mean(), rel=1e-5)
    assert 2 < found.mean < 5
    assert found.count == 4
    relative = [np.std(rates, ddof=1) / np.sqrt(2) / rates.mean() for rates in (fast, slow)]
    assert found.standard_error == pytest.approx(found.mean * np.hypot(*relative), rel=1e-5)


def test_one_tempo_alone_has_no_ratio() -> None:
    prompts = tuple(asking(i, "fast") for i in range(3))
    columns = {"judge/onset-tempo": np.zeros(3)}
    assert fast_over_slow(EvaluationResult(prompts=prompts, columns=columns)) is None


def test_every_row_has_the_figures_that_are_known_of_it() -> None:
    prompts = (asking(0, "fast"), asking(1, "slow"))
    columns = {
        "judge/stable-pitch": np.array([1.0, np.nan]),
        "judge/instrument-top1": np.array([np.nan, np.nan]),
    }
    rows = {
        name: EvaluationResult(prompts=prompts, columns=columns)
        for name in ("real", "reconstruction", "base")
    }
    sets = {
        name: SetFigures(
            clips=9,
            distances={"frechet/tagger": Distance(value=value, standard_error=error, clips=9)},
            diversity={},
        )
        for name, value, error in (("reconstruction", 2.0, 0.2), ("base", 5.0, 0.5))
    }
    gap = Figure(mean=0.4, standard_error=0.1, count=2)
    found = bar_figures(rows, sets, {"base": gap}, "reconstruction")
    assert list(found["real"]) == ["stable-pitch"]
    assert found["real"]["stable-pitch"].count == 1
    ratio = found["base"]["distance-ratio"]
    assert ratio.mean == 2.5
    assert ratio.standard_error == pytest.approx(2.5 * np.hypot(0.1, 0.1))
    assert found["base"][GAP] is gap
    assert list(named(found)["base"]) == [
        "solo prompts with a stable pitch (at least 0.7)",
        "Fréchet distance to real over that of reconstructions (at most 3)",
        "another caption costs, nats a semantic token (at least 0.3)",
    ]
    assert BARS["distance-ratio"].is_most
