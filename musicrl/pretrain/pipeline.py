"""Running stages in order: what is finished is skipped, what was interrupted continues.

    begin ── run ── stamp its files ── finish        a stop anywhere leaves `NAME.begun.json`

A checkpoint is continued from only where the stage was begun with the settings and inputs that it
has now; any other is deleted first. Knows nothing of what a stage makes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from musicrl.pretrain.record import Begun, Record, Records
from musicrl.pretrain.stage import Stage

TENSORBOARD = Path("weights/tensorboard/stages")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A stage and its record."""

    stage: Stage
    record: Record
    is_new: bool
    """Whether it was made now; else it was finished before."""


def run_stages(stages: Sequence[Stage], out: Path, console: Console) -> tuple[Outcome, ...]:
    """Bring every stage to its end, in order; what became of each.

    Raises whatever a stage raises; all that was finished before stays finished.
    """
    records = Records(out)
    outcomes: list[Outcome] = []
    for number, stage in enumerate(stages):
        found = records.find(stage)
        title = f"stage {number + 1} of {len(stages)}, {stage.name}"
        left = remaining(outcomes, stages[number:])
        say(console, f"{title}: {_plan_of(stage, found, records)}{'' if found else left}")
        try:
            record = found or run_stage(stage, records)
        except KeyboardInterrupt:
            say(console, f"{title}: interrupted; given the same command again it {stage.resumes}")
            raise
        outcomes.append(Outcome(stage=stage, record=record, is_new=found is None))
        if found is None:
            say(console, f"{title}: finished in {in_words(record.seconds)}")
    _write_events(out / TENSORBOARD, outcomes)
    return tuple(outcomes)


def run_stage(stage: Stage, records: Records) -> Record:
    """One stage from where it stands to its record."""
    begun = _begin(stage, records)
    records.begin(stage.name, begun)
    with _timed(stage.name, begun, records) as clock:
        made = stage.run()
    record = Record(
        settings=begun.settings,
        read=begun.read,
        seconds=begun.seconds + clock[0],
        attempts=begun.attempts,
        wrote=records.stamps(stage),
        figures={name: value if isfinite(value) else None for name, value in made.items()},
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    records.finish(stage.name, record)
    return record


def _begin(stage: Stage, records: Records) -> Begun:
    """The begun record of this attempt; checkpoints of anything else are deleted."""
    now = Begun(settings=stage.digest, read=records.inputs(stage))
    before = records.read_begun(stage.name)
    if before is not None and (before.settings, before.read) == (now.settings, now.read):
        return replace(before, attempts=before.attempts + 1)
    for pattern in stage.checkpoints:
        for path in records.out.glob(pattern):
            path.unlink()
    return replace(now, attempts=1)


@contextmanager
def _timed(name: str, begun: Begun, records: Records) -> Iterator[list[float]]:
    """Seconds inside, in a list of one; noted in the begun record also when it is left by a fault."""
    clock, started = [0.0], time.monotonic()
    try:
        yield clock
    finally:
        clock[0] = time.monotonic() - started
        records.begin(name, replace(begun, seconds=begun.seconds + clock[0]))


def remaining(done: Sequence[Outcome], left: Sequence[Stage]) -> str:
    """What the stages that are left may take, by the pace of those that are done; nothing where
    none is."""
    usual = sum(outcome.stage.minutes for outcome in done) * 60
    if not usual:
        return ""
    pace = sum(outcome.record.seconds for outcome in done) / usual
    return f"; all that is left takes about {in_words(pace * 60 * sum(s.minutes for s in left))}"


def in_words(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(console: Console, sentence: str) -> None:
    """One line, as it stands."""
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _plan_of(stage: Stage, found: Record | None, records: Records) -> str:
    if found is not None:
        return f"finished before, in {in_words(found.seconds)}"
    if records.read_begun(stage.name) is not None:
        return f"was interrupted, {stage.resumes}"
    return "begins"


def _write_events(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Minutes and figures of what was made now, at the stage's place among the stages."""
    new: Mapping[int, Outcome] = {n: o for n, o in enumerate(outcomes) if o.is_new}
    if not new:
        return
    with SummaryWriter(str(folder)) as writer:
        for number, outcome in new.items():
            writer.add_scalar("minutes", outcome.record.seconds / 60, number)
            for name, value in outcome.record.figures.items():
                if value is not None:
                    writer.add_scalar(f"{outcome.stage.name}/{name}", value, number)
