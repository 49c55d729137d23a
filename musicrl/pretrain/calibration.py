"""The calibration stage: what the music tagger says of the world's own clips.

Its judges compare tags of very different rates; each tag's spread over real clips makes them
comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicrl.evaluation.judges import CALIBRATION, tag_log_odds, write_calibration
from musicrl.evaluation.musicnn import Tagger
from musicrl.pretrain.progress import track
from musicrl.pretrain.world import WorldData


@dataclass(frozen=True, kw_only=True)
class CalibrationStageConfig:
    """Measuring of the tagger on validation clips."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder that receives calibration.json."""


def calibrate_tagger(config: CalibrationStageConfig) -> dict[str, float]:
    """Write calibration.json; returns the mean over tags of its means and deviations."""
    data, tagger = WorldData(config.world, "validation"), Tagger()
    batches = np.array_split(np.arange(len(data)), -(-len(data) // 16))
    parts = [
        tag_log_odds(tagger, data.audio(batch))
        for batch in track(batches, description="hearing tags")
    ]
    log_odds = np.concatenate(parts)
    mean, deviation = log_odds.mean(0), log_odds.std(0)
    config.weights.mkdir(parents=True, exist_ok=True)
    write_calibration(config.weights / CALIBRATION, mean, deviation, clips=len(data))
    return {"clips": float(len(data)), "mean": float(mean.mean()), "sd": float(deviation.mean())}
