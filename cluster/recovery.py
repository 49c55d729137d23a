"""Recovery: what the controller does about a task that gave nothing.

    sampler died      the chunk is made again, from the same seeds, by another
    scorer died       another scores the chunk
    either hung       at its deadline it is killed, and counts as dead
    bytes lost        the chunk is made again
    learner died      another starts from the newest checkpoint, with an empty replay
    again and again   the chunk is cut into its prompts; a prompt that fails alone is quarantined

It counts failures and gives up after too many, with a checkpoint if there is a learner to write
one. What is queued and reserved belongs to the controller; this puts chunks back there.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from cluster.quarantine import Case, Quarantine
from cluster.supervise import Fault, Lost, Task
from musicrl.rollout import Chunk, chunk_seeds

if TYPE_CHECKING:
    from cluster.controller import Controller, Sampled

MAX_ATTEMPTS = 5
"""Times that a chunk's bytes may be lost, or that the learner may die without having trained a step
in between, before the run gives up."""
LEARNER = "the learner"


class Recovery:
    """Of one controller's run."""

    def __init__(self, loop: Controller) -> None:
        self.loop = loop
        self.fleet, self.journal, self.pending = loop.fleet, loop.journal, loop.pending
        self.config = loop.config
        self.quarantine = Quarantine(loop.journal.run.folder / "quarantine")
        self.failures: Counter[object] = Counter()
        self.lost_rollouts = self.num_quarantined = 0

    def take_counts(self) -> tuple[int, int]:
        """Rollouts lost and prompts quarantined since the last call."""
        counts = self.lost_rollouts, self.num_quarantined
        self.lost_rollouts = self.num_quarantined = 0
        return counts

    def progress(self) -> None:
        """A step has been trained: the learner is no hopeless case."""
        del self.failures[LEARNER]

    # Lost tasks.

    def lose_chunk(self, task: Task, chunk: Chunk, lost: Lost, *, is_heard: bool) -> None:
        """Its sampler failed: the chunk is made again, from the same seeds (unless it is, or was, by
        another meanwhile)."""
        self.fleet.retire(self.fleet.samplers, task, lost)
        if not (self.loop.is_current(task) and is_heard):
            return
        self.lost_rollouts += 1
        if self.is_suspect(chunk, lost):
            self.isolate(task, chunk, lost)
        else:
            self.loop.unsampled.appendleft(chunk)

    def lose_score(self, task: Task, sampled: Sampled, lost: Lost, *, is_heard: bool) -> None:
        """Its scorer failed: another scores it. Its audio is lost: it is made again."""
        self.fleet.retire(self.fleet.scorers, task, lost)
        if not (self.loop.is_current(task) and is_heard):
            return
        if self.is_suspect(sampled.chunk, lost):
            self.isolate(task, sampled.chunk, lost, sampled)
        elif lost.fault is Fault.BYTES:
            self.loop.unsampled.appendleft(sampled.chunk)
            self.lost_rollouts += 1
        else:
            self.loop.unscored.appendleft(sampled)

    def lose_step(self, lost: Lost) -> None:
        """The learner died, or rollouts that it was to read are gone."""
        if lost.fault is Fault.PEER:
            return self.revive_learner(lost)
        step = self.loop.version
        chunks = self.loop.replay.remake()
        self.loop.unsampled.extendleft(reversed(chunks))
        self.lost_rollouts += len(chunks)
        self.count_failure(f"training step {step}", lost)

    def revive_learner(self, lost: Lost) -> None:
        """Start another learner from the newest checkpoint, or from the base without one."""
        self.count_failure(LEARNER, lost)
        self.fleet.replace_learner()
        peer, checkpoint, version = self.fleet.learner, self.journal.run.find_checkpoint(), 0
        if checkpoint is not None:
            restoring = peer.actor.restore.remote(checkpoint)
            version = self.pending.call(restoring, peer, f"restoring {checkpoint}")
        self.journal.display.say(f"a new learner goes on from version {version}")
        self.loop.begin(version, peer.actor.weights.remote())

    # Prompts at which actors keep failing.

    def is_suspect(self, chunk: Chunk, lost: Lost) -> bool:
        """Count a failure at a chunk; whether it was the last attempt. Lost bytes are no fault of
        the chunk."""
        self.count_failure(chunk, lost, is_final=lost.fault is Fault.BYTES)
        is_last = self.failures[chunk] >= self.config.cluster.max_attempts
        return is_last and lost.fault is not Fault.BYTES

    def isolate(self, task: Task, chunk: Chunk, lost: Lost, sampled: Sampled | None = None) -> None:
        """Try the prompts of a chunk one by one; quarantine what is one prompt already."""
        if len(chunk.prompts) > 1:
            self.journal.display.say(f"the prompts of {chunk} are tried one by one")
            return self.loop.unsampled.extendleft(reversed(self.loop.replay.split(chunk)))
        self.quarantine.add(self.case(task, chunk, lost, sampled))
        self.num_quarantined += 1
        self.journal.display.say(f"{chunk} is quarantined in {self.quarantine.folder}")
        most = self.config.cluster.max_quarantined
        if len(self.quarantine) > most:
            self.give_up(f"more than {most} prompts failed (cluster.max_quarantined)", lost)
        self.drop(chunk)

    def case(self, task: Task, chunk: Chunk, lost: Lost, sampled: Sampled | None) -> Case:
        rollouts = None if sampled is None else self.pending.fetch(sampled.rollouts, task)
        seed, samples = self.config.seed, self.config.rollout.samples_per_prompt
        return Case(
            chunk=chunk,
            doing=f"{task.peer.name}: {task.doing}",
            error=str(lost),
            attempts=self.failures[chunk],
            run_seed=seed,
            seeds=chunk_seeds(seed, chunk.step, [chunk.first_prompt], samples).tolist(),
            version=None if sampled is None else sampled.report.version,
            rollouts=None if isinstance(rollouts, Lost) else rollouts,
        )

    def without_quarantined(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """A reserved chunk, or what is left of it. Raises ConnectionError when nothing of its step
        is."""
        if not self.quarantine.touches(chunk):
            return (chunk,)
        parts = self.loop.replay.split(chunk)
        for part in filter(self.quarantine.holds, parts):
            self.drop(part)
        return tuple(part for part in parts if not self.quarantine.holds(part))

    def drop(self, chunk: Chunk) -> None:
        """Leave a prompt out of its step. Raises ConnectionError when it was the last one."""
        self.loop.replay.drop(chunk)
        if not self.loop.replay.num_prompts(chunk.step):
            self.give_up(f"every prompt of step {chunk.step} is quarantined")

    # The end of patience.

    def count_failure(self, what: object, lost: Lost, *, is_final: bool = True) -> None:
        """Tell people, and give up after too many where they are `is_final`. Raises
        ConnectionError."""
        self.failures[what] += 1
        self.journal.display.say(f"{what} failed: {lost}")
        if is_final and self.failures[what] >= MAX_ATTEMPTS:
            raise ConnectionError(f"{what} failed {MAX_ATTEMPTS} times; at last, {lost}")

    def give_up(self, why: str, lost: Lost | None = None) -> NoReturn:
        """End the run with a checkpoint, if the learner can still write one."""
        peer, doing = self.fleet.learner, "writing the last checkpoint"
        task = Task(kind="save", peer=peer, doing=doing, may_raise=True)
        saved = self.pending.fetch(peer.actor.save.remote(), task)
        kept = f"no checkpoint: {saved}" if isinstance(saved, Lost) else f"checkpoint {saved}"
        at_last = f"; at last, {lost}" if lost else ""
        raise ConnectionError(f"{why} (see {self.quarantine.folder}){at_last}; {kept}")
