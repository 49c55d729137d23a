"""Actors that compute nothing: each answers what the controller reads, after the time it costs.

An actor does one task after another, as Ray's do. What it answers is right in everything that the
controller looks at (versions, lags, sizes) and empty in everything else.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.sampler import SampleReport
from actors.scorer import ScoreReport
from cluster.simulation.costs import Costs
from cluster.simulation.store import Reference
from cluster.simulation.timeline import Lane, Timeline
from musicrl.learner import StepReport

Answer = Callable[[], tuple[Any, ...]]
BYTES_PER_SAMPLE = 2048
"""Of rollouts: what the replay counts, and no more."""

SCORED = ScoreReport(seconds=0.0, priority=1.0)


class Remote:
    """A method of an actor, called as Ray's are."""

    __slots__ = ("actor", "answer", "cost", "num_returns")

    def __init__(
        self,
        actor: SimulatedActor,
        cost: Callable[..., float],
        answer: Callable[..., tuple[Any, ...]],
        num_returns: int = 1,
    ) -> None:
        self.actor, self.cost, self.answer, self.num_returns = actor, cost, answer, num_returns

    def options(self, **_: Any) -> Remote:
        return self

    def remote(self, *args: Any) -> Any:
        returns = [Reference() for _ in range(self.num_returns)]
        self.actor.enqueue(lambda: self.cost(*args), lambda: self.answer(*args), returns)
        return returns[0] if self.num_returns == 1 else returns


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where an actor computes."""

    lane: Lane
    demand: float
    """What its tasks use of the lane."""


class SimulatedActor:
    """Takes its tasks in order, in its seat."""

    def __init__(self, timeline: Timeline, seat: Seat, costs: Costs, seed: int) -> None:
        self.timeline, self.seat = timeline, seat
        self.costs, self.random = costs, random.Random(seed)
        self.busy_seconds = 0.0
        self._queue: deque[tuple[Callable[[], float], Answer, list[Reference]]] = deque()
        self._is_busy = False
        self.ping = Remote(self, _nothing, lambda: (0,))

    def draw(self, seconds: Sequence[float]) -> float:
        """One of the measured durations."""
        return self.random.choice(seconds) if seconds else 0.0

    def enqueue(self, cost: Callable[[], float], answer: Answer, returns: list[Reference]) -> None:
        self._queue.append((cost, answer, returns))
        if not self._is_busy:
            self._next()

    def _next(self) -> None:
        self._is_busy = bool(self._queue)
        if not self._is_busy:
            return
        cost, answer, returns = self._queue.popleft()
        began = self.timeline.now

        def done() -> None:
            self.busy_seconds += self.timeline.now - began
            for reference, value in zip(returns, answer(), strict=True):
                reference.fill(value)
            self._next()

        self.timeline.start(self.seat.lane, seconds=cost(), demand=self.seat.demand, done=done)


class SimulatedSampler(SimulatedActor):
    def __init__(
        self,
        timeline: Timeline,
        seat: Seat,
        costs: Costs,
        seed: int,
        *,
        samples_per_prompt: int,
    ) -> None:
        super().__init__(timeline, seat, costs, seed)
        self.samples_per_prompt = samples_per_prompt
        self.version: int | None = None
        self.generate = Remote(self, self._cost, self._answer, 3)

    def _cost(self, chunk: Any, version: int, weights: Any) -> float:
        is_new, self.version = version != self.version, version
        return self.draw(self.costs.sample) + (self.draw(self.costs.apply) if is_new else 0.0)

    def _answer(self, chunk: Any, version: int, weights: Any) -> tuple[Any, ...]:
        samples = len(chunk.prompts) * self.samples_per_prompt
        report = SampleReport(
            version=version, num_bytes=samples * BYTES_PER_SAMPLE, seconds=_PHASES["sample"]
        )
        return (version, samples), None, report


class SimulatedScorer(SimulatedActor):
    def __init__(self, timeline: Timeline, seat: Seat, costs: Costs, seed: int) -> None:
        super().__init__(timeline, seat, costs, seed)
        self.score = Remote(
            self, lambda *_: self.draw(self.costs.score), lambda *_: (None, SCORED), 2
        )


class SimulatedLearner(SimulatedActor):
    def __init__(self, timeline: Timeline, seat: Seat, costs: Costs, seed: int) -> None:
        super().__init__(timeline, seat, costs, seed)
        self.step = Remote(self, lambda *_: self.draw(self.costs.learn), self._answer, 2)
        self.save = Remote(self, lambda *_: self.draw(self.costs.save), lambda: (None,))
        self.weights = Remote(self, _nothing, lambda: (None,))

    def _answer(self, step: int, pairs: Sequence[Any]) -> tuple[StepReport, None]:
        lags: Counter[int] = Counter()
        for rollouts, _ in pairs:
            version, samples = rollouts.value
            lags[step - version] += samples
        report = StepReport(
            step=step, figures={}, lags=lags, failed_rewards={}, seconds=_PHASES["learn"]
        )
        return report, None


def _nothing(*_: Any) -> float:
    return 0.0


_PHASES = {
    "sample": dict.fromkeys(("publish", "sample", "decode"), 0.0),
    "learn": dict.fromkeys(("learn", "publish"), 0.0),
}
