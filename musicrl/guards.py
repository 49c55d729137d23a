"""Guards against over-optimisation: conditions on a run's figures that warn, or end the run.

The paper sees rewards rise past the point where listeners gain (section 5.1, figures 7 and 8) and
defends by early checkpoints; which figures betray it, and the limits, are this project's choice. A
guard reads figures that others computed: it samples nothing, stops nothing and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from musicrl.closest import closest
from musicrl.evaluation.figures import Figure, paired
from musicrl.evaluation.heldout import REWARD, EvaluationResult

JUDGES = ("judge/embedding", "judge/tagger")
"""The judges of the caption as a whole; the others tell parts of it, on fewer clips."""
KL = "kl/sequence"
WATCHED = ("advantage/std", "policy/grad_norm", "policy/loss", KL)
"""Figures of an update that are finite unless it went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a guard reads."""

    unit: str
    is_floor: bool = False
    """Trips below its limit rather than above it."""
    is_heldout: bool = False
    """Judges evaluations rather than updates."""


GUARDS: Mapping[str, Guard] = {
    "max_kl": Guard(unit="nats a clip"),
    "min_entropy": Guard(unit="nats a token", is_floor=True),
    "max_skipped": Guard(unit="updates"),
    "heldout_fall": Guard(unit="standard errors", is_heldout=True),
    "judge_fall": Guard(unit="standard errors", is_heldout=True),
    "max_silence": Guard(unit="of the time", is_heldout=True),
    "max_clipping": Guard(unit="of the samples", is_heldout=True),
    "min_pitch_variety": Guard(unit="nats", is_floor=True, is_heldout=True),
}


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Signs of over-optimisation. Each guard is a limit (none: off) that warns, or ends the run
    where `stop` names it. Held-out guards judge the evaluation before training, those of
    `evaluate_every` and the one after."""

    stop: tuple[str, ...] = ()
    """Guards that end the run, with a checkpoint and the evaluation after; the others warn."""
    evaluate_every: int = 0
    """Iterations between measurements of all held-out prompts during training (0: never). Each
    takes as long as the evaluation before."""
    restore_best: bool = False
    """Keep the checkpoint of the evaluation with the best held-out reward while no held-out guard
    warned; evaluate it at the end and copy its policy to policy.safetensors in `out`."""
    window: int = 5
    """Updates whose median max_kl and min_entropy look at, so that a noisy one does not trip them;
    also those that max_skipped counts in."""
    max_kl: float | None = 30.0
    """Divergence from the reference in an update's clips, nats a clip."""
    min_entropy: float | None = 0.1
    """Entropy of the least random stream in an update's clips, nats a token."""
    max_skipped: int | None = 1
    """Updates in a window that were skipped or whose advantage, loss, gradient or divergence was
    not finite."""
    heldout_fall: float | None = 2.0
    """Fall of the held-out reward since its best evaluation while the trained reward rose, in
    standard errors of the paired difference."""
    judge_fall: float | None = 2.0
    """Fall of a judge (embedding or tagger) since its best evaluation while the held-out reward
    rose, in standard errors of the paired difference."""
    max_silence: float | None = 0.2
    """Share of the held-out clips' time below -60 dB of full scale."""
    max_clipping: float | None = 0.05
    """Share of the held-out clips' samples at full scale or beyond."""
    min_pitch_variety: float | None = 0.8
    """Entropy of the pitch classes of held-out clips, nats: 0 for one note repeated."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"guards.window must be 1 or more, got {self.window}")
        if self.evaluate_every < 0:
            raise ValueError(
                f"guards.evaluate_every must not be negative, got {self.evaluate_every}"
            )
        for name, limit in self.limits.items():
            if not 0 <= limit < math.inf:
                raise ValueError(f"guards.{name} must be a number from 0 on, got {limit}")
        if self.max_skipped is not None and self.max_skipped >= self.window:
            raise ValueError(
                f"guards.max_skipped {self.max_skipped} never trips: guards.window is {self.window}"
            )
        if self.restore_best and not self.evaluate_every:
            raise ValueError("guards.restore_best needs guards.evaluate_every")
        for name in self.stop:
            self._check_stop(name)

    def _check_stop(self, name: str) -> None:
        if name not in GUARDS:
            raise ValueError(f"guards.stop names no guard {name!r}{closest(name, list(GUARDS))}")
        if name not in self.limits:
            raise ValueError(f"guards.stop names {name}, but guards.{name} is off")
        if GUARDS[name].is_heldout and not self.evaluate_every:
            raise ValueError(f"guards.stop {name} needs guards.evaluate_every")

    @property
    def limits(self) -> dict[str, float]:
        """Limits of the guards that are on."""
        values: dict[str, float | None] = {
            "max_kl": self.max_kl,
            "min_entropy": self.min_entropy,
            "max_skipped": self.max_skipped,
            "heldout_fall": self.heldout_fall,
            "judge_fall": self.judge_fall,
            "max_silence": self.max_silence,
            "max_clipping": self.max_clipping,
            "min_pitch_variety": self.min_pitch_variety,
        }
        return {name: float(limit) for name, limit in values.items() if limit is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A guard that tripped."""

    guard: str
    figure: str
    """Name of the figure, as in TensorBoard, or what was made of it."""
    value: float
    limit: float
    step: int
    """Training steps done when it tripped."""

    def __str__(self) -> str:
        kind = GUARDS[self.guard]
        side = "below" if kind.is_floor else "above"
        return (
            f"{self.figure} is {self.value:.4g} {kind.unit} after step {self.step}, "
            f"{side} guards.{self.guard} {self.limit:g}"
        )

    def to_json(self) -> dict[str, str | int | float | None]:
        """A value that is not finite becomes null."""
        return {
            "guard": self.guard,
            "figure": self.figure,
            "value": self.value if math.isfinite(self.value) else None,
            "limit": self.limit,
            "step": self.step,
        }


Reading = tuple[str, float]
"""A figure's name and value."""


class Watch:
    """Reads the figures of a run and says which guards trip.

    A step or evaluation that comes again, after a learner's death, replaces what came before.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.active: dict[str, Alarm] = {}
        """Guards whose condition holds now."""
        self.first: dict[str, Alarm] = {}
        """The first alarm of every guard that ever tripped."""
        self.stopped_by: Alarm | None = None
        self._updates: dict[int, Mapping[str, float]] = {}
        self._rewards: dict[int, float] = {}
        self._evaluations: dict[int, EvaluationResult] = {}

    def update(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Look at update number `step`; sentences about guards that trip or clear."""
        window = {s: f for s, f in self._updates.items() if s < step} | {step: figures}
        self._updates = {s: window[s] for s in sorted(window)[-self.config.window :]}
        self._rewards = {s: r for s, r in self._rewards.items() if s < step}
        if "reward/mean" in figures:
            self._rewards[step] = figures["reward/mean"]
        readings = {
            "max_kl": self._median(KL),
            "min_entropy": self._least_entropy(),
            "max_skipped": self._skipped(),
        }
        return self._settle(step + 1, readings, can_stop=True)

    def evaluation(self, step: int, result: EvaluationResult, *, can_stop: bool) -> list[str]:
        """Look at an evaluation after `step` training steps; sentences as of `update`."""
        earlier = {s: r for s, r in self._evaluations.items() if s < step}
        self._evaluations = {**earlier, step: result}
        figures = result.figures
        sounding = _mean(figures, "judge/sounding")
        readings = {
            "heldout_fall": self._heldout_fall(step, earlier),
            "judge_fall": self._judge_fall(step, earlier),
            "max_silence": None if sounding is None else ("1 - judge/sounding", 1 - sounding),
            "max_clipping": _reading(figures, "judge/clipping"),
            "min_pitch_variety": _reading(figures, "judge/pitch-variety"),
        }
        return self._settle(step, readings, can_stop=can_stop)

    @property
    def is_heldout_sound(self) -> bool:
        """Whether no guard holds anything against the latest evaluation."""
        return not any(GUARDS[name].is_heldout for name in self.active)

    def scalars(self, *, is_heldout: bool) -> dict[str, float]:
        """1 for each guard of updates, or of evaluations, whose condition holds; 0 for the others
        that are on."""
        names = (name for name in self.config.limits if GUARDS[name].is_heldout == is_heldout)
        return {f"guard/{name}": float(name in self.active) for name in names}

    def _settle(
        self, step: int, readings: Mapping[str, Reading | None], *, can_stop: bool
    ) -> list[str]:
        said = []
        limits = self.config.limits
        for name, reading in readings.items():
            if name not in limits or reading is None:  # what cannot be told changes nothing
                continue
            if not _is_tripped(name, reading[1], limits[name]):
                if self.active.pop(name, None) is not None:
                    said.append(f"guard {name}: clear again after step {step}")
                continue
            figure, value = reading
            alarm = Alarm(guard=name, figure=figure, value=value, limit=limits[name], step=step)
            if name not in self.active:
                said.append(f"guard {name}: {alarm}")
            self._trip(alarm, can_stop=can_stop)
        return said

    def _trip(self, alarm: Alarm, *, can_stop: bool) -> None:
        self.active.setdefault(alarm.guard, alarm)
        self.first.setdefault(alarm.guard, alarm)
        if can_stop and self.stopped_by is None and alarm.guard in self.config.stop:
            self.stopped_by = alarm

    def _median(self, name: str) -> Reading | None:
        """Median over a full window; None while one of its updates lacks the figure."""
        values = [f[name] for f in self._updates.values() if math.isfinite(f.get(name, math.nan))]
        return (name, median(values)) if len(values) == self.config.window else None

    def _least_entropy(self) -> Reading | None:
        newest = self._updates[max(self._updates)]
        streams = [name for name in newest if name.startswith("entropy/stream/")]
        found = [reading for name in streams if (reading := self._median(name)) is not None]
        return min(found, key=lambda reading: reading[1], default=None)

    def _skipped(self) -> Reading:
        return "update/skipped", float(sum(map(_went_wrong, self._updates.values())))

    def _heldout_fall(self, step: int, earlier: Mapping[int, EvaluationResult]) -> Reading | None:
        best = _best(earlier, REWARD)
        if best is None:
            return None
        has_risen = self._trained(best) < self._trained(step)
        return "fall of reward", self._fall(best, step, REWARD) if has_risen else 0.0

    def _judge_fall(self, step: int, earlier: Mapping[int, EvaluationResult]) -> Reading:
        bests = {name: _best(earlier, name) for name in JUDGES}
        falls = [
            (f"fall of {name}", self._fall(best, step, name))
            for name, best in bests.items()
            if best is not None and self._change(best, step, REWARD).mean > 0
        ]
        return max(falls, key=lambda reading: reading[1], default=("fall of a judge", 0.0))

    def _change(self, since: int, step: int, name: str) -> Figure:
        before, after = self._evaluations[since], self._evaluations[step]
        return paired(before.columns[name], after.columns[name])

    def _fall(self, since: int, step: int, name: str) -> float:
        """Standard errors by which a column fell; negative where it rose or cannot be told."""
        if name not in self._evaluations[step].columns:
            return -math.inf
        change = self._change(since, step, name)
        if change.count < 2:
            return -math.inf
        if change.standard_error == 0:
            return math.copysign(math.inf, -change.mean) if change.mean else 0.0
        return -change.mean / change.standard_error

    def _trained(self, step: int) -> float:
        """Mean trained reward of the window before `step`, of the first window for what was
        measured before it; NaN when nothing was trained."""
        done = [self._rewards[s] for s in sorted(self._rewards) if s < step]
        first = [self._rewards[s] for s in sorted(self._rewards)][: self.config.window]
        window = done[-self.config.window :] or first
        return fmean(window) if window else math.nan


def _is_tripped(name: str, value: float, limit: float) -> bool:
    return value < limit if GUARDS[name].is_floor else value > limit


def _went_wrong(figures: Mapping[str, float]) -> bool:
    known: Iterator[float] = (figures[name] for name in WATCHED if name in figures)
    return figures.get("update/skipped", 0.0) > 0 or not all(map(math.isfinite, known))


def _best(earlier: Mapping[int, EvaluationResult], name: str) -> int | None:
    """The step of the evaluation with the highest mean of a column; the first of equals."""
    means = {step: _mean(result.figures, name) for step, result in earlier.items()}
    known = {step: mean for step, mean in means.items() if mean is not None}
    return max(known, key=lambda step: known[step], default=None)


def _mean(figures: Mapping[str, Figure], name: str) -> float | None:
    return figures[name].mean if name in figures and figures[name].count else None


def _reading(figures: Mapping[str, Figure], name: str) -> Reading | None:
    mean = _mean(figures, name)
    return None if mean is None else (name, mean)
