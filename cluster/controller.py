"""The controller: one loop that moves references between actors, never bytes.

    prompts ─► reserve ─► sample ────────► score ────────► replay ─► learn ─► publish
                 ▲        any idle         any idle                  the        │
                 │        sampler          scorer                    learner    │
                 │           ▲                                                  │
                 │           └───────── weights, once per version ◄─────────────┤
                 └───────────────────── slots, once the weights are out ◄───────┘

A slot is room for one prompt, and there are (max_lag + 1) x prompts_per_step of them (fewer where
samples are reused; see `cluster.replay`). A chunk of prompts takes its slots before it is sampled and
gives them back when the version trained on it has been published. With max_lag 0 the samplers
therefore wait for the learner and the run equals `musicrl solo` bit for bit; with max_lag 1 they make
the next step's chunks meanwhile. Nothing else in this file differs between the two.

What fails is put right by `cluster.recovery`, what is slow is done twice (`cluster.stragglers`), and
whatever was in flight when a learner died belongs to an older epoch and is ignored. Errors that are
nobody's death end the run, and so does a learner that misses its deadline, which is named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.pool import Peer
from actors.sampler import SampleReport
from cluster.meter import Meter, sizes_of
from cluster.recovery import Recovery
from cluster.replay import Entry, Replay
from cluster.roles import Crew, Log
from cluster.stragglers import KINDS, Stragglers
from cluster.supervise import Lost, Pending, Result, Task
from musicrl.config import TrainConfig
from musicrl.evaluation.heldout import EvaluationChunk
from musicrl.journal import Iteration, add_up
from musicrl.learner import StepReport
from musicrl.prompts import draw
from musicrl.rollout import Chunk, chunks_of
from musicrl.run import is_due, is_measured
from musicrl.stop import StopRequest
from musicrl.types import Prompt

TICK_SECONDS = 0.5
"""Longest wait without looking at deadlines and at a request to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A chunk between sampler and scorer."""

    chunk: Chunk
    rollouts: Any
    """Reference to Rollouts."""
    clips: Any
    """Reference to Clips; the last one, so that scoring frees the audio."""
    report: SampleReport


class Controller:
    """Trains until the last step, or until it is asked to stop."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        prompts: Sequence[Prompt],
        fleet: Crew,
        journal: Log,
        stop: StopRequest,
        heard: EvaluationChunk,
        measure: Callable[[int, Any], None],
    ) -> None:
        """`heard` are the fixed prompts to play when `evaluation.every` says so; `measure` has all
        held-out prompts measured with a version, which the learner holds and whose weights a
        reference stands for."""
        self.config = config
        self.prompts = prompts
        self.fleet = fleet
        self.pending: Pending = fleet.pending
        self.journal = journal
        self.stop = stop
        self.heard = heard
        self.measure_heldout = measure
        self.epoch = 0
        self.clock = fleet.pending.clock
        self.recovery = Recovery(self)
        self.meter = Meter(
            sizes_of(config.cluster),
            is_broadcast=config.cluster.weights_transport == "collective",
        )
        self.stragglers = Stragglers(self.pending, config.cluster.straggler_factor)
        self.handlers: dict[str, Callable[[Task, Result], None]] = {
            "sample": self.sampled,
            "score": self.scored,
            "learn": self.learned,
            "save": self.saved,
            "listen": self.listened,
            "diverge": self.abandoned,
            "restart": self.fleet.restarted,
            "join": self.fleet.joined,
        }

    # The loop.

    def train(self, version: int, weights: Any) -> tuple[int, Any]:
        """Train from `version`, whose weights a reference stands for; the same at the end."""
        with self.pending.watched(self.meter), self.pending.watched(self.stragglers):
            return self.go_on(version, weights)

    def go_on(self, version: int, weights: Any) -> tuple[int, Any]:
        """The loop itself."""
        self.begin(version, weights)
        while self.is_running:
            if self.is_unmeasured and not self.stop.is_requested:
                self.measure()
            if self.is_stopped:
                self.listen()
            elif not self.stop.is_requested:
                self.reserve()
                self.listen()
                self.sample()
                self.score()
                self.learn()
            self.collect()
        self.save()
        while self.pending.count("save"):
            self.collect()
        return self.version, self.weights

    @property
    def is_running(self) -> bool:
        if self.stop.is_requested:
            return bool(self.pending.count("learn", "save"))
        is_open = bool(self.unheard) or bool(self.pending.count("save", "listen"))
        if self.is_stopped:
            return is_open or bool(self.pending.count("sample", "score", "learn"))
        return self.is_unmeasured or self.version < self.config.iterations or is_open

    @property
    def is_stopped(self) -> bool:
        """Whether a guard ends the run."""
        return self.journal.watch.stopped_by is not None

    def begin(self, version: int, weights: Any) -> None:
        """Start, or start again, at a version: nothing reserved, nothing in flight that counts."""
        self.epoch += 1
        self.version, self.weights = version, weights
        self.next_round = version // self.config.replay.reuse
        self.replay = Replay(
            prompts_per_step=self.config.rollout.prompts_per_step,
            max_lag=self.config.cluster.max_lag,
            config=self.config.replay,
            seed=self.config.seed,
            first_step=version,
        )
        self.unsampled: deque[Chunk] = deque()
        self.unscored: deque[Sampled] = deque()
        self.unheard: deque[tuple[int, Any]] = deque()
        self.is_unmeasured = False
        self.waiting_since = self.learned_at = self.clock()

    # What is sent out, in the order in which data flows.

    def reserve(self) -> None:
        """Draw the prompts of the next rounds, as far as there are slots for them."""
        rollout = self.config.rollout
        while self.replay.has_room(rollout.prompts_per_step) and self.needs_more:
            prompts = draw(
                self.prompts, self.config.seed, self.next_round, rollout.prompts_per_step
            )
            for chunk in chunks_of(self.next_round, prompts, size=rollout.prompts_per_chunk):
                self.replay.reserve(chunk)
                self.unsampled.extend(self.recovery.without_quarantined(chunk))
            self.next_round += 1

    @property
    def needs_more(self) -> bool:
        """Whether the steps to come need another round. Where samples are drawn, a use that one lost
        to its age is made good."""
        if self.next_round * self.config.replay.reuse < self.config.iterations:
            return True
        if self.replay.is_fifo:
            return False
        return not self.replay.is_enough_for(self.config.iterations - self.version)

    def listen(self) -> None:
        """Have the fixed prompts played with the weights of the steps at which that is due."""
        while self.unheard and self.fleet.samplers.is_idle:
            (version, weights), peer = self.unheard.popleft(), self.fleet.samplers.take()
            _, clips, report = peer.actor.generate_heldout.remote(
                self.heard, version, [weights], self.fleet.address
            )
            doing = f"playing the fixed prompts with version {version}"
            self.send(report, "listen", peer, doing, (version, weights), (clips,))

    def measure(self) -> None:
        """Have the held-out prompts measured, once nothing is in flight and before the next step."""
        while self.pending.count("sample", "score", "listen", "save"):
            self.collect()
            if self.stop.is_requested or not self.is_unmeasured:  # or the learner has died
                return
        self.is_unmeasured = False
        self.measure_heldout(self.version, self.weights)
        self.waiting_since = self.learned_at = self.clock()

    def sample(self) -> None:
        """Give the oldest chunks to idle samplers, with the newest weights; a slow one to another."""
        while self.fleet.samplers.is_idle:
            slow = None if self.unsampled else self.straggling("sample")
            if not self.unsampled and slow is None:
                break
            chunk = slow.subject if slow else self.unsampled.popleft()
            peer = self.fleet.samplers.take()
            rollouts, clips, report = peer.actor.generate.remote(
                chunk, self.version, [self.weights], self.fleet.address
            )
            doing = f"sampling {chunk} with version {self.version}"
            self.send(report, "sample", peer, doing, chunk, (rollouts, clips), slow)

    def score(self) -> None:
        """Give the oldest sampled chunks to idle scorers; a slow one to another."""
        while self.fleet.scorers.is_idle:
            slow = None if self.unscored else self.straggling("score")
            if not self.unscored and slow is None:
                break
            sampled = slow.subject if slow else self.unscored.popleft()
            peer = self.fleet.scorers.take()
            rewards, report = peer.actor.score.remote(sampled.chunk, sampled.clips)
            self.send(report, "score", peer, f"scoring {sampled.chunk}", sampled, (rewards,), slow)

    def straggling(self, kind: str) -> Task | None:
        """A slow task of a kind, if there is one, to be done twice; people are told."""
        task = self.stragglers.find(kind, self.epoch)
        if task is not None:
            told = f"{task.peer.name} is slow: another does the same ({task.doing})"
            self.journal.display.say(told)
        return task

    def learn(self) -> None:
        """Give the learner its next step, once all of its chunks are there."""
        if self.pending.count("learn"):
            return
        self.unsampled.extendleft(reversed(self.replay.evict(self.version)))
        entries = self.replay.take(self.version)
        if not entries:
            return
        peer, pairs = self.fleet.learner, [(entry.rollouts, entry.rewards) for entry in entries]
        report, weights = peer.actor.step.remote(self.version, pairs, self.pending.peers("restart"))
        waited = {"wait": self.clock() - self.waiting_since}
        seconds = add_up([waited, *(entry.seconds for entry in entries)])
        self.send(report, "learn", peer, f"training step {self.version}", seconds, (weights,))

    def save(self) -> None:
        """Have the learner write a checkpoint of its version."""
        path = self.fleet.learner.actor.save.remote()
        doing = f"writing the checkpoint of version {self.version}"
        self.send(path, "save", self.fleet.learner, doing, None, ())

    def send(
        self,
        reference: Any,
        kind: str,
        peer: Peer,
        doing: str,
        subject: Any,
        outputs: tuple[Any, ...],
        slow: Task | None = None,
    ) -> None:
        """A call is in flight from now on; with `slow`, it is that task's copy."""
        task = Task(
            kind=kind,
            peer=peer,
            doing=doing,
            subject=subject,
            outputs=outputs,
            epoch=self.epoch,
            may_raise=kind in KINDS,
        )
        self.pending.add(reference, task)
        if slow is not None:
            self.stragglers.pair(slow, task)

    # What comes back.

    def collect(self) -> None:
        """Wait a moment for whatever finishes first, and handle all that has finished."""
        for task, result in self.pending.wait(TICK_SECONDS):
            self.handlers[task.kind](task, result)

    def sampled(self, task: Task, result: Result) -> None:
        """A chunk has been sampled and decoded: on to a scorer."""
        is_heard = self.stragglers.settle(task, result)
        if isinstance(result, Lost):
            return self.recovery.lose_chunk(task, task.subject, result, is_heard=is_heard)
        self.fleet.samplers.give(task.peer)
        if self.is_current(task) and is_heard:
            rollouts, clips = task.outputs
            self.unscored.append(
                Sampled(chunk=task.subject, rollouts=rollouts, clips=clips, report=result)
            )

    def scored(self, task: Task, result: Result) -> None:
        """A chunk has its rewards: it is experience now, and its audio is dropped."""
        sampled: Sampled = task.subject
        is_heard = self.stragglers.settle(task, result)
        if isinstance(result, Lost):
            return self.recovery.lose_score(task, sampled, result, is_heard=is_heard)
        self.fleet.scorers.give(task.peer)
        if self.is_current(task) and is_heard:
            self.replay.put(
                Entry(
                    chunk=sampled.chunk,
                    rollouts=sampled.rollouts,
                    rewards=task.outputs[0],
                    version=sampled.report.version,
                    num_bytes=sampled.report.num_bytes,
                    seconds={**sampled.report.seconds, "score": result.seconds},
                    priority=result.priority,
                )
            )

    def learned(self, task: Task, result: Result) -> None:
        """A version is trained and published: free its slots, tell people, keep it if it is due."""
        if not self.is_current(task):
            return
        if isinstance(result, Lost):
            return self.recovery.lose_step(result)
        self.version, (self.weights,) = result.step + 1, task.outputs
        replay_bytes = self.replay.num_bytes
        self.replay.release(result.step)
        self.replay.check_integrity()
        self.recovery.progress()
        self.record(result, task.subject, replay_bytes)
        for sentence in result.missed:
            self.journal.display.say(sentence)
        if self.is_stopped:
            return
        self.fleet.grow()
        self.is_unmeasured = is_measured(self.config, self.version)
        if is_due(self.version, self.config.checkpoint_every):
            self.save()
        if is_due(self.version, self.config.evaluation.every):
            self.unheard.append((self.version, self.weights))

    def record(self, report: StepReport, seconds: dict[str, float], replay_bytes: int) -> None:
        now = self.clock()
        lost, quarantined = self.recovery.take_counts()
        self.journal.record(
            Iteration(
                report=report,
                seconds=add_up([seconds, report.seconds]),
                wall_seconds=now - self.learned_at,
                lost_rollouts=lost,
                quarantined=quarantined,
                replay_bytes=replay_bytes,
                actors=self.meter.take(now - self.learned_at, self.fleet.samplers.size),
            )
        )
        self.waiting_since = self.learned_at = now

    def listened(self, task: Task, result: Result) -> None:
        """The fixed prompts have been played."""
        version, weights = task.subject
        if isinstance(result, Lost):
            self.fleet.retire(self.fleet.samplers, task, result)
            self.unheard.append((version, weights))
            return self.recovery.count_failure(f"playing version {version}", result)
        clips = self.pending.call(task.outputs[0], task.peer, task.doing)
        self.fleet.samplers.give(task.peer)
        self.journal.heard(f"step_{version:06d}", version, self.heard.prompts, clips)

    def abandoned(self, task: Task, result: Result) -> None:
        """What was left of a measurement when the run was asked to stop: nobody waits for it."""

    def saved(self, task: Task, result: Result) -> None:
        """A checkpoint is on disk (or its learner died, which the next step would show)."""
        if isinstance(result, Lost) and self.is_current(task):
            self.recovery.revive_learner(result)

    def is_current(self, task: Task) -> bool:
        """Whether a task was sent by this learner's loop and not before its restart."""
        return task.epoch == self.epoch
