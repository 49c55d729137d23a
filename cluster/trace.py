"""The trace: what every actor did during the first updates of a run, for chrome://tracing.

It watches the tasks in flight from the controller's side: a span lasts from when its actor was free
for it to when its end was seen, and so includes the call itself; inside it stand, against its end,
the phases that the actor reported. Arrows lead from a chunk's sampling over its scoring to the
training step that it went into. https://ui.perfetto.dev reads the file too. It changes nothing of
the run, and keeps spans only until it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.replay import Key
from cluster.supervise import Lost, Result, Task
from musicrl.textfile import write_text

TRACE_FILE = "trace.json"
NUM_LEARNERS = "num_learners"
"""Key of the ranks behind the one row of the learner."""
MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A task that came back."""

    kind: str
    peer: str
    doing: str
    start: float
    """s, on the controller's clock; when the actor was free for it."""
    end: float
    queued: float
    """Seconds that it waited for its actor before."""
    phases: Mapping[str, float]
    """Seconds by phase, in the order in which they were done."""
    chunk: Key | None = None
    """What was sampled or scored."""
    step: int | None = None
    """What was trained."""
    is_lost: bool = False

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(slots=True)
class Trace:
    """Spans of the first `updates` training steps; handed to `Pending` as an observer."""

    updates: int
    path: Path | None
    """Where they are written once they are over (none: they are only kept)."""
    num_learners: int = 1
    spans: list[Span] = field(default_factory=list)
    is_done: bool = False
    _free: dict[str, float] = field(default_factory=dict)
    """When each actor's last task ended."""

    def __call__(self, task: Task, result: Result, sent: float, done: float) -> None:
        """Note a task that was sent and came back, both in s."""
        if self.is_done:
            return
        start = max(sent, self._free.get(task.peer.name, sent))
        self._free[task.peer.name] = done
        self.spans.append(to_span(task, result, sent=sent, start=start, end=done))
        if self.num_updates == self.updates:
            self.close()

    @property
    def num_updates(self) -> int:
        return sum(span.kind == "learn" and not span.is_lost for span in self.spans)

    def close(self) -> None:
        """Write what there is."""
        if not self.is_done and self.spans and self.path is not None:
            write_text(self.path, json.dumps(to_chrome(self.spans, self.num_learners)) + "\n")
        self.is_done = True


def to_span(task: Task, result: Result, *, sent: float, start: float, end: float) -> Span:
    is_lost = isinstance(result, Lost)
    return Span(
        kind=task.kind,
        peer=task.peer.name,
        doing=task.doing,
        start=start,
        end=end,
        queued=start - sent,
        phases={} if is_lost else phases_of(task.kind, result),
        chunk=chunk_of(task),
        step=None if is_lost or task.kind != "learn" else result.step,
        is_lost=is_lost,
    )


def phases_of(kind: str, result: Any) -> Mapping[str, float]:
    """Seconds that an actor reported, first things first."""
    if kind == "score":
        return {"score": result.seconds}
    if kind in ("sample", "listen"):
        return {name: result.seconds[name] for name in ("publish", "sample", "decode")}
    return dict(result.seconds) if kind == "learn" else {}


def chunk_of(task: Task) -> Key | None:
    """The chunk that a task sampled or scored."""
    if task.kind == "sample":
        key: Key = task.subject.key
        return key
    return task.subject.chunk.key if task.kind == "score" else None


def to_chrome(spans: list[Span], num_learners: int = 1) -> dict[str, Any]:
    """The trace-event format: https://chromium.googlesource.com/catapult, "Trace Event Format"."""
    rows = Rows()
    first = min(span.start for span in spans)
    events = [event for span in spans for event in span_events(span, rows.of(span.peer), first)]
    return {
        "displayTimeUnit": "ms",
        "otherData": {NUM_LEARNERS: num_learners},
        "traceEvents": [*rows.names(), *events, *arrows(spans, rows, first)],
    }


class Rows:
    """A process for every class of actors, a thread for every actor."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, int]] = {}

    def of(self, peer: str) -> dict[str, int]:
        """Its process and thread."""
        group = peer.split()[0]
        if peer not in self.known:
            pids = {name.split()[0]: row["pid"] for name, row in self.known.items()}
            pid = pids.get(group, len(pids) + 1)
            tid = 1 + sum(name.split()[0] == group for name in self.known)
            self.known[peer] = {"pid": pid, "tid": tid}
        return self.known[peer]

    def names(self) -> Iterator[dict[str, Any]]:
        for peer, row in self.known.items():
            yield {"ph": "M", "name": "thread_name", **row, "args": {"name": peer}}
            yield {"ph": "M", "name": "process_name", **row, "args": {"name": peer.split()[0]}}


def span_events(span: Span, row: Mapping[str, int], first: float) -> Iterator[dict[str, Any]]:
    """A span, and its phases inside it."""
    args = {
        "doing": span.doing,
        "peer": span.peer,
        "queued_ms": 1e3 * span.queued,
        "phases": dict(span.phases),
        "lost": span.is_lost,
    }
    yield _slice(span.kind, span.start - first, span.seconds, row, args)
    begin = span.end - sum(span.phases.values())
    for name, seconds in span.phases.items():
        yield _slice(name, max(begin, span.start) - first, seconds, row, {})
        begin += seconds


def arrows(spans: list[Span], rows: Rows, first: float) -> Iterator[dict[str, Any]]:
    """From sampling to scoring, and from scoring to the training step, of every chunk."""
    lines: dict[Key, list[Span]] = {}
    for span in spans:
        if span.chunk is not None:
            lines.setdefault(span.chunk, []).append(span)
    steps = {span.step: span for span in spans if span.step is not None}
    for number, (chunk, line) in enumerate(lines.items(), start=1):
        step = steps.get(chunk[0])
        yield from _arrow(number, line if step is None else [*line, step], rows, first)


def _arrow(number: int, line: list[Span], rows: Rows, first: float) -> Iterator[dict[str, Any]]:
    for index, span in enumerate(line):
        ph = "s" if index == 0 else "f" if index == len(line) - 1 else "t"
        at = (span.end if index == 0 else span.start) - first
        event = {"ph": ph, "name": "chunk", "cat": "chunk", "id": number, "ts": MICROSECONDS * at}
        yield {**event, **rows.of(span.peer), **({"bp": "e"} if ph == "f" else {})}


def _slice(
    name: str, start: float, seconds: float, row: Mapping[str, int], args: Mapping[str, Any]
) -> dict[str, Any]:
    times = {"ts": MICROSECONDS * start, "dur": MICROSECONDS * seconds}
    return {"ph": "X", "name": name, "cat": "task", **times, **row, "args": args}
