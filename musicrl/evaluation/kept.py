"""What a finetuned policy kept of music: a reward that rises while melody falls was bought with it.

    reward | melody, diversity, instrument, tempo, sound | distance to real clips, heed of captions

Every figure is compared with the base's over the same prompts. It is worse, or better, where the
95 % interval of its change lies on one side of 0; of figures that did not change one in forty is
called worse by chance. It computes figures from others and hears nothing.

Axes: P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from musicrl.evaluation.bars import DISTANCE, GAP
from musicrl.evaluation.clipset import ClipSet, SetFigures
from musicrl.evaluation.diversity import own_spread
from musicrl.evaluation.document import Table
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import REWARD, EvaluationResult

Floats = NDArray[np.float64]
LEVEL = 0.95
ROUNDING = 1e-9
"""A change of as much is none."""
BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A figure that must hold."""

    part: str
    """What of music it stands for."""
    said: str
    is_less_better: bool = False


MUSIC: Mapping[str, Asked] = {
    "judge/stable-pitch": Asked(part="melody", said="solos with a stable pitch"),
    "longest-note": Asked(
        part="melody", said="one pitch class held or repeated, s", is_less_better=True
    ),
    "judge/pitch-variety": Asked(part="melody", said="variety of pitch classes, nats"),
    "spread/tagger": Asked(part="diversity", said="spread of clips, tagger's embedding"),
    "spread/judge": Asked(part="diversity", said="spread of clips, judge's embedding"),
    "judge/instrument-top1": Asked(part="instrument", said="caption's instrument heard most"),
    "judge/onset-tempo": Asked(part="tempo", said="onset rate towards the caption's tempo, log"),
    "judge/sounding": Asked(part="sound", said="share of time that sounds"),
    DISTANCE: Asked(part="likeness", said="Fréchet distance to real clips", is_less_better=True),
    GAP: Asked(part="captions", said="another caption costs, nats a semantic token"),
}
"""By the name that the figure bears elsewhere; those that were not measured are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A figure of two policies over the same prompts."""

    before: float
    after: float
    parts: Floats
    """float64 [P]: what each prompt adds to the change, which is their mean; NaN without a score."""
    order: int = 1
    """2 for a mean over pairs of clips, whose standard error is twice that of the parts' mean
    (Hoeffding 1948)."""

    @property
    def change(self) -> Figure:
        found = figure(self.parts)
        error = self.order * found.standard_error
        return Figure(mean=found.mean, standard_error=error, count=found.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a figure became, and whether that is worse."""

    asked: Asked
    before: float
    after: float
    change: Figure

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the change (Student's t); NaN below two prompts."""
        found = self.change
        if found.count < 2:
            return float("nan"), float("nan")
        reach = float(student.ppf((1 + LEVEL) / 2, found.count - 1)) * found.standard_error
        return found.mean - reach, found.mean + reach

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if low > ROUNDING:
            return WORSE if self.asked.is_less_better else BETTER
        if high < -ROUNDING:
            return BETTER if self.asked.is_less_better else WORSE
        return NOT_SHOWN

    def to_json(self) -> dict[str, object]:
        """NaN becomes null."""
        ends = [float(end) for end in self.interval]
        return {
            "part": self.asked.part,
            "before": self.before,
            "after": self.after,
            "change": self.change.to_json(),
            "ci95": ends if np.isfinite(ends).all() else None,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        low, high = self.interval
        moved = f"{self.before:.3f} to {self.after:.3f}"
        return f"{self.asked.said}: {moved} ({self.change.mean:+.3f}, {low:+.3f} to {high:+.3f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What one policy kept."""

    reward: Change | None
    """None where it was trained on none."""
    music: Mapping[str, Change]
    """By name, those of `MUSIC` that were measured."""

    @property
    def worse(self) -> list[Change]:
        return [found for found in self.music.values() if found.verdict == WORSE]

    @property
    def better(self) -> list[Change]:
        return [found for found in self.music.values() if found.verdict == BETTER]

    @property
    def is_reward_higher(self) -> bool:
        return self.reward is not None and self.reward.verdict == BETTER

    @property
    def is_bought(self) -> bool:
        """Whether the reward rose while music fell: a failure."""
        return self.is_reward_higher and bool(self.worse)

    def to_json(self) -> dict[str, object]:
        return {
            "reward": None if self.reward is None else self.reward.to_json(),
            "music": {name: found.to_json() for name, found in self.music.items()},
            "worse": [name for name, found in self.music.items() if found.verdict == WORSE],
            "better": [name for name, found in self.music.items() if found.verdict == BETTER],
            "reward_rose_while_music_fell": self.is_bought,
        }

    def said(self, name: str) -> str:
        """One sentence on the policy called `name`."""
        rose = "the reward rose" if self.is_reward_higher else "no rise of the reward is shown"
        parts = [f"{name}: {rose}" if self.reward is not None else f"{name}: no reward"]
        if self.worse:
            fell = "while music FELL" if self.is_reward_higher else "and music FELL"
            parts = [f"{parts[0]} {fell}: {'; '.join(map(str, self.worse))}"]
        else:
            parts.append(f"none of {len(self.music)} figures of music is worse than the base's")
        if self.better:
            parts.append(f"better: {'; '.join(map(str, self.better))}")
        return ". ".join(parts)


def kept(paired: Mapping[str, Paired], beside: Mapping[str, Change] | None = None) -> Kept:
    """From figures by name, among them the reward where there is one, and changes that are not
    paired."""
    changes = {
        name: Change(asked=asked, before=pair.before, after=pair.after, change=pair.change)
        for name, asked in MUSIC.items()
        if (pair := paired.get(name)) is not None and pair.change.count
    }
    reward = paired.get(REWARD)
    return Kept(
        reward=_reward(reward) if reward is not None and reward.change.count else None,
        music={**changes, **(beside or {})},
    )


def paired_figures(
    before: tuple[EvaluationResult, ClipSet], after: tuple[EvaluationResult, ClipSet]
) -> dict[str, Paired]:
    """Of two rows of the same prompts: every column that both have, and the spread of embeddings."""
    columns = [{**result.columns, **clips.columns} for result, clips in (before, after)]
    found = {k: of_columns(columns[0][k], columns[1][k]) for k in columns[0] if k in columns[1]}
    spreads = {
        f"spread/{name}": of_embeddings(rows, after[1].embeddings[name])
        for name, rows in before[1].embeddings.items()
    }
    return found | {name: pair for name, pair in spreads.items() if pair is not None}


def of_columns(before: Floats, after: Floats) -> Paired:
    """Scores [P] of either policy; the means are over the prompts that both have."""
    parts: Floats = after - before
    both = np.isfinite(parts)
    means = [float(c[both].mean()) if both.any() else float("nan") for c in (before, after)]
    return Paired(before=means[0], after=means[1], parts=parts)


def of_embeddings(before: Floats, after: Floats) -> Paired | None:
    """The mean cosine distance between clips, of embeddings [P, D]; None below three clips."""
    both = np.logical_and.reduce(np.isfinite(before) & np.isfinite(after), axis=1)
    if both.sum() < 3:
        return None
    own = [own_spread(rows[both]) for rows in (before, after)]
    parts = np.full(len(both), np.nan)
    parts[both] = own[1] - own[0]
    return Paired(before=float(own[0].mean()), after=float(own[1].mean()), parts=parts, order=2)


def together(several: Sequence[Paired]) -> Paired:
    """One figure of several seeds: a prompt of all seeds is one unit."""
    parts = np.stack([pair.parts for pair in several])
    known = np.isfinite(parts)
    count = known.sum(0)
    mean = np.where(known, parts, 0).sum(0) / np.maximum(count, 1)
    return Paired(
        before=float(np.nanmean([pair.before for pair in several])),
        after=float(np.nanmean([pair.after for pair in several])),
        parts=np.where(count > 0, mean, np.nan),
        order=several[0].order,
    )


def distance_change(before: SetFigures, after: SetFigures) -> dict[str, Change]:
    """The change of the distance to real clips, where there are any. Both sets share prompts and
    random numbers, which the standard error does not know: it is too large rather than too small."""
    pair = [found.distances.get(DISTANCE) for found in (before, after)]
    first, second = pair
    if first is None or second is None:
        return {}
    error = float(np.hypot(first.standard_error, second.standard_error))
    change = Figure(mean=second.value - first.value, standard_error=error, count=second.clips)
    found = Change(asked=MUSIC[DISTANCE], before=first.value, after=second.value, change=change)
    return {DISTANCE: found}


def passed_over(rows: Mapping[str, Kept]) -> list[str]:
    """What of `MUSIC` no row has, in words."""
    measured = {name for row in rows.values() for name in row.music}
    return [asked.said for name, asked in MUSIC.items() if name not in measured]


def kept_table(rows: Mapping[str, Kept]) -> Table:
    """One line a figure, one column a policy."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row.music))
    lines = [("reward", "", *(_cell(row.reward) for row in rows.values()))]
    lines += [
        (MUSIC[name].said, MUSIC[name].part, *(_cell(r.music.get(name)) for r in rows.values()))
        for name in names
    ]
    return ("change from the base (95 %)", "of", *rows), lines


def _cell(found: Change | None) -> str:
    if found is None:
        return "-"
    low, high = found.interval
    told = {WORSE: " WORSE", BETTER: " better", NOT_SHOWN: ""}[found.verdict]
    return f"{found.change.mean:+.3f} ({low:+.3f} to {high:+.3f}){told}"


def _reward(pair: Paired) -> Change:
    asked = Asked(part=REWARD, said=REWARD)
    return Change(asked=asked, before=pair.before, after=pair.after, change=pair.change)
