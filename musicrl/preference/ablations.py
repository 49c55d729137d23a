"""The paper's ablations of the preference model, on one split of the same comparisons (section 6).

    full, no text, first half / first quarter of the clips, from scratch   trained for as many steps
    higher text / quality reward wins                      logistic regression on one difference

The scores of the last two are those of the rewards, of the audio that the tokens decode to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from scipy.special import expit

from musicrl.playable import PlayableWorld
from musicrl.policies.preference import PreferenceModel
from musicrl.preference.inputs import Inputs, distinct_clips
from musicrl.preference.pairs import Pairs
from musicrl.preference.predictions import Prediction, predict
from musicrl.preference.training import TrainingConfig, train
from musicrl.rewards.base import Reward
from musicrl.rewards.table import make_reward
from musicrl.types import Clips, Prompt

Floats = NDArray[np.float64]
SLOPE_PAIRS = 500
"""Comparisons to learn from that the slope of a predictor is fitted on."""
PREDICTORS = ("text", "quality")
"""Rewards whose difference is a predictor."""
CLIPS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one ablation takes away."""

    has_text: bool = True
    share: float = 1.0
    """Of the clip that is shown, from its start."""
    is_scratch: bool = False
    """Whether it starts from random numbers, not from the policy."""


FULL = "full"
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "no text": Variant(has_text=False),
        "first half of the clips": Variant(share=1 / 2),
        "first quarter of the clips": Variant(share=1 / 4),
        "from scratch": Variant(is_scratch=True),
    }
)


def ablate(
    start: Callable[[], PreferenceModel],
    inputs: Inputs,
    world: PlayableWorld,
    config: TrainingConfig,
    folder: Path,
) -> dict[str, Prediction]:
    """The figures of every ablation on the held-out comparisons; `start` makes the model that the
    full one started from.

    Raises FileNotFoundError when the world lacks the file of a reward, before anything is trained.
    """
    rewards = {name: make_reward(name, world) for name in PREDICTORS}
    found = {
        name: _train(name, variant, start(), inputs, config, folder)
        for name, variant in VARIANTS.items()
    }
    for name, reward in rewards.items():
        found[f"higher {name} reward wins"] = reward_prediction(reward, inputs.pairs, world)
    return found


def _train(
    name: str,
    variant: Variant,
    model: PreferenceModel,
    inputs: Inputs,
    config: TrainingConfig,
    folder: Path,
) -> Prediction:
    if variant.is_scratch:
        model = from_scratch(model, config.seed)
    shown = Inputs(
        pairs=inputs.pairs,
        conditions=inputs.conditions,
        has_text=variant.has_text,
        num_steps=max(1, round(variant.share * inputs.pairs.num_steps)),
    )
    return train(model, shown, config, folder / name.replace(" ", "-"), name=name).prediction


def from_scratch(model: PreferenceModel, seed: int) -> PreferenceModel:
    """A model of the same shape that knows nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.fresh()


def reward_prediction(reward: Reward, pairs: Pairs, world: PlayableWorld) -> Prediction:
    """How well the difference of a reward foretells the held-out choices.

    A pair with a clip that the reward cannot score is left out of both sides.
    """
    learned, held = (
        _differences(reward, pairs, numbers, world)
        for numbers in (pairs.train[:SLOPE_PAIRS], pairs.heldout)
    )
    slope = fit_slope(learned[1], pairs.first_wins[learned[0]])
    numbers, difference = held
    return predict(slope * difference, pairs.first_wins[numbers], pairs.prompt[numbers])


def fit_slope(difference: Floats, first_wins: NDArray[np.bool_], *, rounds: int = 50) -> float:
    """The slope of a logistic regression of choices bool [M] on differences [M] without intercept,
    by Newton's steps; held to 100 deviations of the difference, where all choices follow it."""
    deviation = float(np.sqrt((difference**2).mean()))
    if deviation == 0:
        return 0.0
    unit, slope = difference / deviation, 0.0
    for _ in range(rounds):
        chance = expit(slope * unit)
        curvature = float((chance * (1 - chance) * unit**2).sum())
        slope += float(((first_wins - chance) * unit).sum()) / max(curvature, 1e-9)
        slope = float(np.clip(slope, -100, 100))
    return slope / deviation


def _differences(
    reward: Reward, pairs: Pairs, numbers: NDArray[np.int64], world: PlayableWorld
) -> tuple[NDArray[np.int64], Floats]:
    """The numbered pairs that the reward can score, and first less second score of each."""
    clips, place = distinct_clips(pairs, numbers)
    scores = clip_rewards(reward, pairs, clips, world)
    difference = scores[place[:, 0]] - scores[place[:, 1]]
    is_scored = np.isfinite(difference)
    return numbers[is_scored], difference[is_scored]


def clip_rewards(
    reward: Reward, pairs: Pairs, clips: NDArray[np.int64], world: PlayableWorld
) -> Floats:
    """Scores float64 [U] of clips int64 [U, 2] as (pair, side); NaN where there is none."""
    scores = []
    for first in range(0, len(clips), CLIPS_AT_ONCE):
        number, side = clips[first : first + CLIPS_AT_ONCE].T
        tokens = np.ascontiguousarray(pairs.tokens[number, side])
        texts = [pairs.texts[p] for p in pairs.prompt[number].tolist()]
        heard = Clips(audio=world.decode(tokens), sample_rate=world.sample_rate, tokens=tokens)
        scores.append(reward([Prompt(id=text, text=text) for text in texts], heard))
    return np.concatenate(scores).astype(np.float64)


def ablation_table(rows: Mapping[str, Prediction], raters: str) -> Table:
    """A row for each variant, the full model first."""
    table = Table(f"held-out choices ({raters})", "accuracy", "log-loss", "comparisons")
    for name, row in rows.items():
        accuracy = f"{row.accuracy:.3f} ± {row.standard_error:.3f}"
        table.add_row(name, accuracy, f"{row.log_loss:.4f}", str(row.comparisons))
    return table


def ablation_figures(rows: Mapping[str, Prediction]) -> dict[str, Any]:
    """The same for JSON."""
    return {name: row.figures for name, row in rows.items()}
