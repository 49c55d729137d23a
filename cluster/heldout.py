"""The held-out evaluation on the fleet: chunks over the samplers, their scores over the scorers.

    held-out chunks ─► sample ─┬─► score against right and wrong captions ─┐
                               └─► divergence from the base (learner) ─────┴─► merge

What is measured stands in `musicrl.evaluation.heldout`; the figures do not depend on who did which
chunk. A chunk whose sampler or scorer dies is made again.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from actors.pool import Peer, Pool
from cluster.fleet import Fleet
from cluster.stragglers import KINDS
from cluster.supervise import Fault, Lost, Result, Task
from musicrl.config import TrainConfig
from musicrl.evaluation.heldout import ChunkScores, Divergence, EvaluationChunk, merge
from musicrl.journal import Hearing, Journal, first_clips
from musicrl.run import heldout_chunks, listening_chunk
from musicrl.stop import StopRequest
from musicrl.types import Clips

TICK_SECONDS = 0.5
MAX_ATTEMPTS = 5


class Heldout:
    """The fixed prompts, and what is measured on them."""

    def __init__(
        self, config: TrainConfig, fleet: Fleet, journal: Journal, stop: StopRequest
    ) -> None:
        self.fleet = fleet
        self.pending = fleet.pending
        self.journal = journal
        self.stop = stop
        self.chunks = heldout_chunks(config)
        self.heard = listening_chunk(config)

    def evaluate(self, version: int, weights: Any, stream_names: tuple[str, ...]) -> Hearing | None:
        """Measure the weights that a reference stands for, which the learner must hold as well;
        None when asked to stop. Raises ConnectionError when a chunk is lost too often."""
        if self.stop.is_requested:
            return None
        self.journal.display.begin("evaluating", len(self.chunks))
        self.unsampled = deque(self.chunks)
        self.unscored: deque[tuple[EvaluationChunk, Any]] = deque()
        self.failures: Counter[str] = Counter()
        self.scores: dict[int, ChunkScores] = {}
        self.divergences: dict[int, Divergence] = {}
        self.clips: dict[int, Clips] = {}
        while len(self.scores) + len(self.divergences) < 2 * len(self.chunks):
            if self.stop.is_requested:
                return None
            self.sample(version, weights)
            self.score()
            self.collect()
        result = merge(list(self.scores.values()), list(self.divergences.values()), stream_names)
        clips = [self.clips[first] for first in sorted(self.clips)]
        prompts = self.heard.prompts
        return Hearing(result=result, prompts=prompts, clips=first_clips(clips, prompts))

    def sample(self, version: int, weights: Any) -> None:
        while self.unsampled and self.fleet.samplers.is_idle:
            chunk, peer = self.unsampled.popleft(), self.fleet.samplers.take()
            rollouts, clips, report = peer.actor.generate_heldout.remote(
                chunk, version, [weights], self.fleet.address
            )
            doing = f"sampling held-out prompts from {chunk.first} on"
            self.send(report, "sample", peer, doing, chunk, (rollouts, clips))

    def score(self) -> None:
        while self.unscored and self.fleet.scorers.is_idle:
            (chunk, clips), peer = self.unscored.popleft(), self.fleet.scorers.take()
            scores = peer.actor.evaluate.remote(chunk, clips)
            doing = f"scoring held-out prompts from {chunk.first} on"
            self.send(scores, "score", peer, doing, chunk, (clips,))

    def send(
        self, reference: Any, kind: str, peer: Peer, doing: str, chunk: Any, outputs: Any
    ) -> None:
        task = Task(kind=kind, peer=peer, doing=doing, subject=chunk, outputs=outputs)
        self.pending.add(reference, task)

    def collect(self) -> None:
        handlers = {
            "sample": self.sampled,
            "score": self.scored,
            "diverge": self.diverged,
            "restart": self.fleet.restarted,
            "join": self.fleet.joined,
        }
        for task, result in self.pending.wait(TICK_SECONDS):
            if task.kind in KINDS and not isinstance(task.subject, EvaluationChunk):
                self.fleet.take_back(task, result)  # a slow one of training, which was done twice
            else:
                handlers[task.kind](task, result)

    def sampled(self, task: Task, result: Result) -> None:
        """On to a scorer and to the learner; the audio of the first prompts is kept."""
        chunk: EvaluationChunk = task.subject
        if isinstance(result, Lost):
            return self.again(self.fleet.samplers, task, result)
        rollouts, clips = task.outputs
        if chunk.first < max(1, len(self.heard.prompts)):
            self.clips[chunk.first] = self.pending.call(clips, task.peer, task.doing)
        self.fleet.samplers.give(task.peer)
        self.unscored.append((chunk, clips))
        learner = self.fleet.learner
        divergence = learner.actor.divergence.remote(chunk, rollouts)
        doing = f"comparing held-out prompts from {chunk.first} on with the base"
        self.send(divergence, "diverge", learner, doing, chunk, ())

    def scored(self, task: Task, result: Result) -> None:
        if isinstance(result, Lost):
            return self.again(self.fleet.scorers, task, result)
        self.fleet.scorers.give(task.peer)
        self.scores[task.subject.first] = result
        self.journal.display.advance()

    def diverged(self, task: Task, result: Result) -> None:
        if isinstance(result, Lost):
            if result.fault is Fault.PEER:
                raise ConnectionError(f"{task.peer.name} was {task.doing} when {result}")
            return self.make_again(task, result)
        self.divergences[task.subject.first] = result

    def again(self, pool: Pool, task: Task, lost: Lost) -> None:
        self.fleet.retire(pool, task, lost)
        self.make_again(task, lost)

    def make_again(self, task: Task, lost: Lost) -> None:
        """From the start: the same clips come out."""
        self.failures[task.doing] += 1
        if self.failures[task.doing] >= MAX_ATTEMPTS:
            raise ConnectionError(f"{task.doing} failed {MAX_ATTEMPTS} times; at last, {lost}")
        self.journal.display.say(f"{task.peer.name} was {task.doing} when {lost}")
        self.unsampled.append(task.subject)
