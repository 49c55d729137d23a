"""What the tasks of a run cost, in seconds, as spans of a real run tell: `musicrl train --trace`.

Every task that was measured stays one possible duration, so that a simulation has the spread of the
machine and not its mean alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.simulation.gathering import Gathering
from cluster.simulation.reducing import Reducing
from cluster.trace import MICROSECONDS, NUM_LEARNERS, Span

LEARN, PUBLISH = "learn", "publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that each task of a kind took, its call included."""

    sample: tuple[float, ...]
    """Of a chunk, with weights that are there already."""
    apply: tuple[float, ...]
    """Fetching and applying another version of the weights, in a sampler."""
    score: tuple[float, ...]
    """Of a chunk."""
    learn: tuple[float, ...]
    """Of a training step, publishing included."""
    save: tuple[float, ...]
    """Of a checkpoint."""
    contention: float = 0.0
    """How much longer a task takes, as a share, while all other cores of its machine are busy."""
    shared: float = 1.0
    """Of a training step of one learner, the share that several would divide: the update, and not
    what is fetched before it and published after it."""
    reducing: Reducing | None = None
    """What several learners pay for sums (none: not known, and only one can be planned for)."""
    gathering: Gathering | None = None
    """What they pay beside that where each holds a part of every network (none: not known)."""

    def __post_init__(self) -> None:
        for kind in ("sample", "score", "learn"):
            if not getattr(self, kind):
                raise ValueError(f"no finished {kind} task to take costs from")

    def to_json(self) -> dict[str, Any]:
        """Means and counts."""
        kinds = {name: v for name, v in asdict(self).items() if isinstance(v, tuple)}
        means = {
            name: {"seconds": fmean(values) if values else 0.0, "tasks": len(values)}
            for name, values in kinds.items()
        }
        return {
            **means,
            "contention": self.contention,
            "shared": self.shared,
            "reducing": self.reducing and asdict(self.reducing),
            "gathering": self.gathering and asdict(self.gathering),
        }


def costs_of(spans: Iterable[Span]) -> Costs:
    """The costs of a run whose first training step, which warms everything up, is not counted.

    Raises ValueError when a kind of task is missing.
    """
    spans = [span for span in spans if not span.is_lost]
    steps = sorted(span.end for span in spans if span.kind == "learn")
    if len(steps) < 2:
        raise ValueError(f"costs need a trace of 2 or more updates, got {len(steps)}")
    warm = [span for span in spans if span.start >= steps[0]]
    applied = [span.phases[PUBLISH] for span in warm if span.kind == "sample"]
    learned = [span for span in warm if span.kind == "learn"]
    in_update = sum(span.phases[LEARN] for span in learned)
    return Costs(
        sample=_seconds(warm, "sample", without=PUBLISH),
        apply=tuple(seconds for seconds in applied if seconds > 0),
        score=_seconds(warm, "score"),
        learn=_seconds(warm, "learn"),
        save=_seconds(warm, "save"),
        shared=min(1.0, in_update / sum(span.seconds for span in learned)),
    )


def read_trace(path: Path) -> list[Span]:
    """The spans of a `trace.json` of a run with one learner. Raises FileNotFoundError or ValueError
    naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no trace at {path}: `musicrl train --trace N` writes one")
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        spans = [_to_span(e) for e in trace["traceEvents"] if _is_task(e)]
        learners = trace.get("otherData", {}).get(NUM_LEARNERS, 1)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as fault:
        raise ValueError(f"{path} is no trace of `musicrl train`: {fault!r}") from fault
    if learners != 1:
        raise ValueError(f"{path} is of {learners} learners: costs come from a run with one")
    return spans


def _is_task(event: Any) -> bool:
    return event["ph"] == "X" and "doing" in event["args"]


def _to_span(event: Any) -> Span:
    args, start = event["args"], event["ts"] / MICROSECONDS
    return Span(
        kind=event["name"],
        peer=args["peer"],
        doing=args["doing"],
        start=start,
        end=start + event["dur"] / MICROSECONDS,
        queued=args["queued_ms"] / 1e3,
        phases=args["phases"],
        is_lost=args["lost"],
    )


def _seconds(spans: Sequence[Span], kind: str, *, without: str = "") -> tuple[float, ...]:
    return tuple(s.seconds - s.phases.get(without, 0.0) for s in spans if s.kind == kind)
