"""The journal of a run: what each iteration and each evaluation gave, for people and for files.

Collects figures from `solo` or the controller, hands them to TensorBoard and the terminal, writes
the wavs and, at the end, the summary. Computes no figure of training itself.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from musicrl.audio import write_wav
from musicrl.config import TrainConfig
from musicrl.evaluation.heldout import REWARD, EvaluationResult, summary
from musicrl.guards import Watch
from musicrl.learner import StepReport
from musicrl.metrics import Display, Metrics, Sink
from musicrl.run import Best, Run, versions
from musicrl.types import Clips, Prompt, clips_of

PHASES = ("sample", "decode", "score", "learn", "publish", "wait")
SHOWN = {
    "reward": "reward/mean",
    "KL": "kl/sequence",
    "entropy": "entropy/token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One training step, seen from the loop."""

    report: StepReport
    seconds: Mapping[str, float]
    """Seconds of work by phase, summed over processes; `wait` is the learner's idle time."""
    wall_seconds: float
    """From the end of the previous training step to the end of this one."""
    lost_rollouts: int = 0
    """Chunks that were lost with a process and made again."""
    quarantined: int = 0
    """Prompts that were given up since the previous step."""
    replay_bytes: int = 0
    actors: Mapping[str, float] = field(default_factory=dict)
    """Figures of the actors, by their names in TensorBoard (none in one process)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """An evaluation, with the audio of its first prompts."""

    result: EvaluationResult
    prompts: Sequence[Prompt]
    """The fixed prompts to listen to."""
    clips: Clips
    """One of each."""


@dataclass(slots=True)
class Totals:
    """Sums over the iterations of this process."""

    iterations: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    wall_seconds: list[float] = field(default_factory=list)
    lags: Counter[int] = field(default_factory=Counter)
    failed_rewards: Counter[str] = field(default_factory=Counter)
    lost_rollouts: int = 0
    quarantined: int = 0
    last_figures: Mapping[str, float] = field(default_factory=dict)


class Journal:
    """Open while the run goes on."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        display: Display | None = None,
        *,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """`sinks` receive what TensorBoard does."""
        self.config = config
        self.run = run
        self.audio = run.folder / "audio"
        self.totals = Totals()
        self.evaluations: dict[str, EvaluationResult] = {}
        self.watch = Watch(config.guards)
        self.restored: Best | None = None
        """What the run ends with in place of its last step."""
        self.display = display or Display()
        self.metrics = Metrics(run.tensorboard, first_step=run.first_step, sinks=sinks)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self.display.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.display.__exit__(kind, error, trace)
        self.metrics.close()

    def begin_training(self, first: int) -> None:
        self.display.begin("training", self.config.iterations, first)

    def record(self, iteration: Iteration) -> None:
        """Add a training step to the totals, to TensorBoard and to the terminal."""
        report, totals = iteration.report, self.totals
        totals.iterations += 1
        totals.seconds = add_up([totals.seconds, iteration.seconds])
        totals.wall_seconds.append(iteration.wall_seconds)
        totals.lags.update(report.lags)
        totals.failed_rewards.update(report.failed_rewards)
        totals.lost_rollouts += iteration.lost_rollouts
        totals.quarantined += iteration.quarantined
        totals.last_figures = report.figures
        self.metrics.scalars(report.step, _scalars(iteration))
        self.metrics.lags(report.step, report.lags)
        shown = {k: report.figures[name] for k, name in SHOWN.items() if name in report.figures}
        self.display.advance({**shown, "s/iter": iteration.wall_seconds})
        self.warn(self.watch.update(report.step, report.figures))
        self.metrics.scalars(report.step, self.watch.scalars(is_heldout=False))

    def warn(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self.display.say(sentence)

    def judge(self, step: int, result: EvaluationResult, *, can_stop: bool) -> None:
        """Have the guards look at an evaluation."""
        self.warn(self.watch.evaluation(step, result, can_stop=can_stop))
        self.metrics.scalars(step, self.watch.scalars(is_heldout=True))

    def measured(self, step: int, result: EvaluationResult) -> None:
        """The held-out prompts measured during training: TensorBoard and the guards."""
        self.metrics.scalars(step, _means(result))
        self.display.say(f"step {step}: held-out reward {result.figures[REWARD]}")
        self.judge(step, result, can_stop=True)

    def restore_best(self) -> Path | None:
        """The checkpoint that the run is to end with, its policy exported; None for the last."""
        best = self.run.find_best() if self.config.guards.restore_best else None
        if best is None:
            return None
        self.restored, checkpoint = best, self.run.checkpoint_folder(best.step)
        self.run.export(checkpoint)
        return checkpoint

    def find_better(self, step: int, result: EvaluationResult) -> Best | None:
        """The policy of the latest evaluation, if the run is to end with the best one and there
        was none as good before."""
        reward, best = result.figures[REWARD], self.run.find_best()
        if not self.config.guards.restore_best or not self.watch.is_heldout_sound:
            return None
        if reward.count == 0 or (best is not None and reward.mean <= best.reward):
            return None
        return Best(step=step, reward=reward.mean)

    def evaluated(self, name: str, step: int, hearing: Hearing | None) -> None:
        """An evaluation `before` or `after` (None: it was stopped): its figures and its audio."""
        if hearing is None:
            return
        self.evaluations[name] = hearing.result
        figures = hearing.result.figures
        self.metrics.scalars(step, _means(hearing.result))
        told = [f"{k} {f}" for k, f in figures.items() if f.count and not k.startswith("reward/")]
        self.display.say(f"{name}: " + ", ".join(told))
        if self.restored is None:  # else its step was judged when it was reached
            self.judge(step, hearing.result, can_stop=False)
        self.heard(name, step, hearing.prompts, hearing.clips)

    def heard(self, name: str, step: int, prompts: Sequence[Prompt], clips: Clips) -> None:
        """The audio of fixed prompts: wavs under audio/<name>, and TensorBoard."""
        self.metrics.clips(step, prompts, clips)
        for index, (prompt, audio) in enumerate(zip(prompts, clips.channels, strict=True)):
            path = self.audio / name / f"{index:02d}_{slug(prompt.text)}.wav"
            write_wav(path, audio, clips.sample_rate)

    def finish(self, version: int) -> dict[str, Any]:
        """Write the summary after `version` training steps."""
        values = self.summary(version)
        self.run.write_summary(values)
        if self.restored is not None:
            self.display.say(
                f"the run ends with the policy of step {self.restored.step}, "
                f"whose held-out reward of {self.restored.reward:.4g} is the best"
            )
        if self.watch.stopped_by is not None:
            alarm = self.watch.stopped_by
            self.display.say(f"stopped by guard {alarm.guard} after {version} steps: {alarm}")
        elif not values["finished"]:
            self.display.say(f"stopped after {version} steps; continue with --resume")
        return values

    def summary(self, version: int) -> dict[str, Any]:
        """Everything that the run has to show, without NaN: what was not measured is null."""
        totals, found = self.totals, self.evaluations
        walls = totals.wall_seconds
        is_whole = "before" in found and "after" in found
        values = {
            "iterations": version,
            "finished": version >= self.config.iterations,
            "seed": self.config.seed,
            "max_lag": self.config.cluster.max_lag,
            "stopped_by": stopped.to_json() if (stopped := self.watch.stopped_by) else None,
            "guards": [alarm.to_json() for alarm in self.watch.first.values()],
            "restored": None if (best := self.restored) is None else asdict(best),
            "evaluation": summary(found["before"], found["after"]) if is_whole else None,
            "last_step": dict(totals.last_figures),
            "seconds": {
                "total": time.monotonic() - self._started,
                "per_iteration": sum(walls) / len(walls) if walls else None,
                "phases": {phase: totals.seconds.get(phase, 0.0) for phase in PHASES},
            },
            "lag_histogram": {str(lag): n for lag, n in sorted(totals.lags.items())},
            "failed_rewards": dict(totals.failed_rewards),
            "lost_rollouts": totals.lost_rollouts,
            "quarantined": totals.quarantined,
            "audio": str(self.audio),
            "versions": versions(),
        }
        cleaned: dict[str, Any] = json.loads(json.dumps(values), parse_constant=lambda _: None)
        return cleaned


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by phase, summed over the parts."""
    total: dict[str, float] = {}
    for part in parts:
        for phase, seconds in part.items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total


def first_clips(parts: Sequence[Clips], prompts: Sequence[Prompt]) -> Clips:
    """The clips of the first prompts, from the parts of an evaluation in their order."""
    channels = np.concatenate([part.channels for part in parts])[: len(prompts)]
    return clips_of(channels, parts[0].sample_rate)


def slug(text: str) -> str:
    """A file name's worth of a prompt."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60].rstrip("_") or "prompt"


def _means(result: EvaluationResult) -> dict[str, float]:
    return {f"evaluation/{k}": f.mean for k, f in result.figures.items() if f.count}


def _scalars(iteration: Iteration) -> dict[str, float]:
    report, wall = iteration.report, iteration.wall_seconds
    return {
        **report.figures,
        **iteration.actors,
        "throughput/samples_per_second": sum(report.lags.values()) / wall,
        "throughput/tokens_per_second": report.num_tokens / wall,
        **{f"seconds/{phase}": value for phase, value in iteration.seconds.items()},
        **{f"failed/{name}": float(count) for name, count in report.failed_rewards.items()},
        "seconds/iteration": wall,
        "staleness/max_lag": float(max(report.lags, default=0)),
        "replay/lost_rollouts": float(iteration.lost_rollouts),
        "replay/quarantined": float(iteration.quarantined),
        "replay/bytes": float(iteration.replay_bytes),
    }
