"""Who is decoded next: sequences are admitted in their order, and give way when blocks run out.

    waiting --admit--> running --finish--> done
       ^                  |
       +-----preempt------+     the youngest first; what it has drawn is kept and encoded again

A round: `schedule` makes room for one more step of everybody who runs and admits whom it can, the
runner decodes `Plan.num_steps` steps during which nothing of this changes, `finish` lets go of
those that are done. It knows blocks and slots, and no tensor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from musicrl.sampler.blocks import BlockPool
from musicrl.sampler.sequence import Branch, Sequence


@dataclass(slots=True)
class Plan:
    """One round."""

    prefills: list[tuple[Branch, Sequence]] = field(default_factory=list)
    """What is to be encoded, with the steps that the sequence already has."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Blocks to copy after that, (from, to) each."""
    num_steps: int = 0
    """Steps that all that run can take."""


class Scheduler:
    """Sequences, the blocks they hold, and the slots of their prompts."""

    def __init__(self, pool: BlockPool, *, num_prefix: int, max_rows: int, num_slots: int) -> None:
        """At most `max_rows` branches run at once; prompts take `num_prefix` positions each."""
        self.pool = pool
        self.num_prefix = num_prefix
        self.max_rows = max_rows
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """From the oldest to the youngest."""
        self.num_preempted = 0
        """Times that a sequence gave way."""
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._holders: dict[tuple[int, ...], list[Branch]] = {}
        """The branches that run, by prompt: the first of them can be forked from."""

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn.

        Raises ValueError when it could not run even alone.
        """
        positions, branches = self.num_prefix + sequence.num_steps, len(sequence.branches)
        blocks = self.pool.blocks_for(positions) * branches
        if blocks > self.pool.num_blocks or branches > self.max_rows:
            raise ValueError(
                f"a sample of {sequence.num_steps} steps needs {blocks} blocks of "
                f"{self.pool.block_size} positions and {branches} rows: there are "
                f"{self.pool.num_blocks} (sampling.num_blocks) and {self.max_rows} "
                f"(sampling.max_rows)"
            )
        self.waiting.append(sequence)

    def schedule(self) -> Plan:
        """The next round; with anybody waiting or running, somebody takes a step in it."""
        plan = Plan()
        for sequence in list(self.running):
            if sequence in self.running:
                self._make_room(sequence)
        while self.waiting and self._can_admit(self.waiting[0]):
            self._admit(self.waiting.popleft(), plan)
        plan.num_steps = min((self._steps_left(sequence) for sequence in self.running), default=0)
        return plan

    def finish(self) -> list[Sequence]:
        """Let go of the sequences that are done, and return them."""
        done = [sequence for sequence in self.running if sequence.is_finished]
        for sequence in done:
            self._release(sequence)
        return done

    def drop(self) -> None:
        """Forget everybody."""
        self.waiting.clear()
        for sequence in list(self.running):
            self._release(sequence)

    def check_integrity(self) -> None:
        """Raise AssertionError if a block or a slot is lost, free and held, or written by two."""
        branches = [branch for sequence in self.running for branch in sequence.branches]
        writing = [
            self._block_at(branch, self.num_prefix + sequence.step)
            for sequence in self.running
            for branch in sequence.branches
        ]
        self.pool.check_integrity([branch.blocks for branch in branches], writing)
        held = {branch.slot for branch in branches}
        assert not held & set(self._free_slots), "a slot is free and held"
        assert held == {own[0].slot for own in self._holders.values()}, "a slot is lost"
        assert sorted(map(id, branches)) == sorted(
            id(branch) for own in self._holders.values() for branch in own
        ), "a branch is lost"

    def _make_room(self, sequence: Sequence) -> None:
        """Blocks for its next position; while there are none, the youngest gives way."""
        missing = self._missing(sequence, sequence.step + 1)
        while sum(missing) > self.pool.num_free:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return
        for branch, count in zip(sequence.branches, missing, strict=True):
            branch.blocks += self.pool.take(count)

    def _missing(self, sequence: Sequence, num_steps: int) -> list[int]:
        """Blocks that each branch lacks to hold so many steps."""
        needed = self.pool.blocks_for(self.num_prefix + num_steps)
        return [max(0, needed - len(branch.blocks)) for branch in sequence.branches]

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preempted += 1

    def _can_admit(self, sequence: Sequence) -> bool:
        """Somebody who gave way comes back when there is room for all that is left of him, so that
        nobody is taken up and dropped in turns."""
        rows = sum(len(other.branches) for other in self.running)
        if rows + len(sequence.branches) > self.max_rows:
            return False
        prompts = {branch.conditions for branch in sequence.branches}
        if len(prompts - self._holders.keys()) > len(self._free_slots):
            return False
        steps = sequence.num_steps if sequence.step else 1
        return sum(self._missing(sequence, steps)) <= self.pool.num_free

    def _admit(self, sequence: Sequence, plan: Plan) -> None:
        for branch in sequence.branches:
            others = self._holders.setdefault(branch.conditions, [])
            branch.slot = others[0].slot if others else self._free_slots.pop()
            if others and sequence.step == 0:
                self._fork(others[0], branch, plan)
            else:
                plan.prefills.append((branch, sequence))
            needed = self.pool.blocks_for(self.num_prefix + sequence.step + 1)
            branch.blocks += self.pool.take(needed - len(branch.blocks))
            others.append(branch)
        self.running.append(sequence)

    def _fork(self, origin: Branch, branch: Branch, plan: Plan) -> None:
        """Share the prompt's full blocks; copy the one that its positions fill in part."""
        full, rest = divmod(self.num_prefix, self.pool.block_size)
        branch.blocks = origin.blocks[:full]
        self.pool.share(branch.blocks)
        if rest:
            branch.blocks += self.pool.take(1)
            plan.copies.append((origin.blocks[full], branch.blocks[full]))

    def _release(self, sequence: Sequence) -> None:
        for branch in sequence.branches:
            others = self._holders[branch.conditions]
            others.remove(branch)
            if not others:
                del self._holders[branch.conditions]
                self._free_slots.append(branch.slot)
            self.pool.release(branch.blocks)
            branch.blocks, branch.slot = [], -1
        self.running.remove(sequence)

    def _steps_left(self, sequence: Sequence) -> int:
        """Steps until it is done or needs another block."""
        held = min(len(branch.blocks) for branch in sequence.branches) * self.pool.block_size
        return min(sequence.num_steps, held - self.num_prefix) - sequence.step

    def _block_at(self, branch: Branch, position: int) -> int:
        index = position // self.pool.block_size
        return branch.blocks[index] if index < len(branch.blocks) else -1


def positions_of(plan: Iterable[tuple[Branch, Sequence]], num_prefix: int) -> list[int]:
    """Positions that each prefill of a plan encodes."""
    return [num_prefix + sequence.step for _, sequence in plan]
