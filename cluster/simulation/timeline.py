"""The timeline: virtual seconds, and lanes in which jobs share what a machine has.

    job ─► lane (the cores of a node, or one GPU) ─► done, later where the lane is crowded

A lane of `capacity` gives every job all that it asks for while that suffices, and cuts all alike
beyond. Busy neighbours slow a job a little even then, since cores share memory and clock: with the
whole rest of the lane busy, a job takes 1 + `contention` times as long. It knows no actors.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

TINY = 1e-9
"""Seconds of work that count as none."""


@dataclass(slots=True, eq=False)
class Job:
    """Work that is under way."""

    left: float
    """Seconds that it would still take alone."""
    demand: float
    """What it uses of its lane's capacity."""
    done: Callable[[], None]


@dataclass(slots=True, eq=False)
class Lane:
    """What jobs share."""

    capacity: float
    contention: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    settled: float = 0.0
    """Time up to which the jobs' work is counted."""
    stamp: int = 0
    """Of the newest entry of this lane in the heap."""

    def speeds(self) -> list[float]:
        """Seconds of each job that are done in a second."""
        demand = sum(job.demand for job in self.jobs)
        return [self._speed(job, demand) for job in self.jobs]

    def _speed(self, job: Job, demand: float) -> float:
        share = min(1.0, self.capacity / demand)
        rest = self.capacity - job.demand
        crowd = 0.0 if rest <= 0 else (min(demand, self.capacity) - job.demand) / rest
        return share / (1.0 + self.contention * max(0.0, crowd))

    def settle(self, now: float) -> list[Job]:
        """Count the work done until `now`; the jobs that it ended."""
        for job, speed in zip(self.jobs, self.speeds(), strict=True):
            job.left -= speed * (now - self.settled)
        self.settled = now
        ended = [job for job in self.jobs if job.left <= TINY]
        self.jobs = [job for job in self.jobs if job.left > TINY]
        return ended

    def next_end(self) -> float:
        """When the first of the jobs ends if none is added."""
        lefts = (job.left / speed for job, speed in zip(self.jobs, self.speeds(), strict=True))
        return self.settled + min(lefts)


class Timeline:
    """Runs jobs to their end, in the order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = count()
        self._heap: list[tuple[float, int, Lane, int]] = []

    def clock(self) -> float:
        return self.now

    def start(self, lane: Lane, *, seconds: float, demand: float, done: Callable[[], None]) -> None:
        """Begin a job that takes `seconds` alone; `done` is called at its end."""
        self._finish(lane)
        lane.jobs.append(Job(left=max(seconds, TINY), demand=demand, done=done))
        self._plan(lane)

    def advance(self, until: float) -> bool:
        """Move to the next end of a job, but not beyond `until`; whether one ended."""
        while self._heap and self._heap[0][3] != self._heap[0][2].stamp:
            heapq.heappop(self._heap)
        if not self._heap or self._heap[0][0] > until:
            self.now = max(self.now, until)
            return False
        time, _, lane, _ = heapq.heappop(self._heap)
        self.now = max(self.now, time)
        self._finish(lane)
        self._plan(lane)
        return True

    def _finish(self, lane: Lane) -> None:
        for job in lane.settle(self.now):
            job.done()

    def _plan(self, lane: Lane) -> None:
        lane.stamp += 1
        if lane.jobs:
            heapq.heappush(self._heap, (lane.next_end(), next(self._numbers), lane, lane.stamp))
