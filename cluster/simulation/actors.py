"""Actors that compute nothing: each answers what the controller reads, after the time it costs.

An actor does one task after another, as Ray's do. What it answers is right in everything that the
controller looks at (versions, lags, sizes) and empty in everything else. Several learners are one
actor with a seat for every rank: a training step ends when the last of them is through.
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
Cost = Callable[[], Sequence[float]]
BYTES_PER_SAMPLE = 2048
"""Of rollouts: what the replay counts, and no more."""

SCORED = ScoreReport(seconds=0.0, priority=1.0)


class Remote:
    """A method of an actor, called as Ray's are; `cost` says how long it takes in each of the actor's
    seats, from the first on."""

    __slots__ = ("actor", "answer", "cost", "num_returns")

    def __init__(
        self,
        actor: SimulatedActor,
        cost: Callable[..., Sequence[float]],
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
    """Takes its tasks in order, in its seats."""

    def __init__(self, timeline: Timeline, seats: Sequence[Seat], costs: Costs, seed: int) -> None:
        self.timeline, self.seats = timeline, seats
        self.costs, self.random = costs, random.Random(seed)
        self.busy_seconds = 0.0
        self._queue: deque[tuple[Cost, Answer, list[Reference]]] = deque()
        self._is_busy = False
        self.ping = Remote(self, _nothing, lambda: (0,))

    def draw(self, seconds: Sequence[float]) -> float:
        """One of the measured durations."""
        return self.random.choice(seconds) if seconds else 0.0

    def enqueue(self, cost: Cost, answer: Answer, returns: list[Reference]) -> None:
        self._queue.append((cost, answer, returns))
        if not self._is_busy:
            self._next()

    def _next(self) -> None:
        self._is_busy = bool(self._queue)
        if not self._is_busy:
            return
        cost, answer, returns = self._queue.popleft()
        began, parts = self.timeline.now, cost()
        left = len(parts)

        def done() -> None:
            nonlocal left
            self.busy_seconds += self.timeline.now - began
            left -= 1
            if left:
                return
            for reference, value in zip(returns, answer(), strict=True):
                reference.fill(value)
            self._next()

        for seat, seconds in zip(self.seats, parts, strict=False):
            self.timeline.start(seat.lane, seconds=seconds, demand=seat.demand, done=done)


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
        super().__init__(timeline, [seat], costs, seed)
        self.samples_per_prompt = samples_per_prompt
        self.version: int | None = None
        self.generate = Remote(self, self._cost, self._answer, 3)

    def _cost(self, chunk: Any, version: int, weights: Any, address: None) -> Sequence[float]:
        is_new, self.version = version != self.version, version
        return [self.draw(self.costs.sample) + (self.draw(self.costs.apply) if is_new else 0.0)]

    def _answer(self, chunk: Any, version: int, weights: Any, address: None) -> tuple[Any, ...]:
        samples = len(chunk.prompts) * self.samples_per_prompt
        report = SampleReport(
            version=version, num_bytes=samples * BYTES_PER_SAMPLE, seconds=_PHASES["sample"]
        )
        return (version, samples), None, report


class SimulatedScorer(SimulatedActor):
    def __init__(self, timeline: Timeline, seat: Seat, costs: Costs, seed: int) -> None:
        super().__init__(timeline, [seat], costs, seed)
        self.score = Remote(
            self, lambda *_: [self.draw(self.costs.score)], lambda *_: (None, SCORED), 2
        )


class SimulatedLearner(SimulatedActor):
    """All ranks, a seat each.

    A step that takes one learner L seconds, of which it spends a share p on the update, takes each
    of n ranks L (1 - p + p r) + s: r is the rank's part of the rows of a minibatch (the n-th,
    rounded up for the first ranks), s what the sums over the ranks take (`reducing`). Each rank
    draws its own L, and the last one ends the step. The optimizer's own work counts as divided, and
    minibatches are not waited for one by one. This project's model.
    """

    def __init__(
        self,
        timeline: Timeline,
        seats: Sequence[Seat],
        costs: Costs,
        seed: int,
        *,
        num_rows: int,
        reduce_seconds: float,
    ) -> None:
        """`num_rows` are those of a minibatch."""
        super().__init__(timeline, seats, costs, seed)
        ranks = len(seats)
        rows = [num_rows // ranks + (rank < num_rows % ranks) for rank in range(ranks)]
        self.shares = [1.0 - costs.shared + costs.shared * own / num_rows for own in rows]
        self.reduce_seconds = reduce_seconds
        self.step = Remote(self, self._cost, self._answer, 2)
        self.save = Remote(self, lambda *_: [self.draw(self.costs.save)], lambda: (None,))
        self.weights = Remote(self, _nothing, lambda: (None,))

    def _cost(self, *_: Any) -> Sequence[float]:
        learn = self.costs.learn
        return [share * self.draw(learn) + self.reduce_seconds for share in self.shares]

    def _answer(self, step: int, pairs: Sequence[Any], resting: object) -> tuple[StepReport, None]:
        lags: Counter[int] = Counter()
        for rollouts, _ in pairs:
            version, samples = rollouts.value
            lags[step - version] += samples
        report = StepReport(
            step=step, figures={}, lags=lags, failed_rewards={}, seconds=_PHASES["learn"]
        )
        return report, None


def _nothing(*_: Any) -> Sequence[float]:
    return [0.0]


_PHASES = {
    "sample": dict.fromkeys(("publish", "sample", "decode"), 0.0),
    "learn": dict.fromkeys(("learn", "publish"), 0.0),
}
