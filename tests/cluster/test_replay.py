"""The replay: bounded, ordered, never stale, and nothing is lost in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cluster.replay import Entry, Replay
from musicrl.config import ReplayConfig
from musicrl.rollout import Chunk, chunks_of
from musicrl.types import Prompt


def prompts(count: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(id=str(i), text=f"tune {i}") for i in range(count))


def step_chunks(step: int, *, count: int = 4, size: int = 2) -> tuple[Chunk, ...]:
    return chunks_of(step, prompts(count), size=size)


def entry(chunk: Chunk, version: int, num_bytes: int = 10) -> Entry:
    return Entry(
        chunk=chunk, rollouts="rollouts", rewards="rewards", version=version, num_bytes=num_bytes
    )


def test_max_lag_0_has_room_for_one_step_until_it_is_released() -> None:
    replay = Replay(prompts_per_step=4, max_lag=0)
    first, second = step_chunks(0)
    replay.reserve(first)
    replay.reserve(second)
    assert not replay.has_room(1)
    with pytest.raises(ValueError, match="no room for chunk 0 of step 1: 4 of 4 used"):
        replay.reserve(step_chunks(1)[0])
    replay.put(entry(first, 0))
    replay.put(entry(second, 0))
    assert len(replay.take(0)) == 2
    assert not replay.has_room(1)
    replay.release(0)
    assert replay.has_room(4)


def test_a_step_is_taken_whole_and_in_order_whatever_the_arrival() -> None:
    replay = Replay(prompts_per_step=4, max_lag=1)
    a, b = step_chunks(0)
    for chunk in (a, b, *step_chunks(1)):
        replay.reserve(chunk)
    replay.put(entry(b, 0))
    assert replay.take(0) == ()
    replay.put(entry(a, 0))
    assert [e.chunk for e in replay.take(0)] == [a, b]
    assert replay.take(0) == ()


def test_a_stale_entry_is_not_handed_out_but_made_again() -> None:
    replay = Replay(prompts_per_step=2, max_lag=1)
    (chunk,) = step_chunks(5, count=2)
    replay.reserve(chunk)
    replay.put(entry(chunk, version=3))
    assert replay.take(5) == ()
    assert replay.evict(version=5) == (chunk,)
    assert replay.num_slots_used == 2
    replay.put(entry(chunk, version=5))
    assert replay.evict(version=5) == ()
    assert len(replay.take(5)) == 1


def test_a_step_is_whole_without_the_prompts_that_were_dropped() -> None:
    replay = Replay(prompts_per_step=4, max_lag=0)
    a, b = step_chunks(0)
    replay.reserve(a)
    replay.reserve(b)
    replay.put(entry(a, 0))
    left, right = replay.split(b)
    assert (left.key, right.key, str(right)) == ((0, 2), (0, 3), "prompt 3 of step 0")
    replay.put(entry(right, 0))
    assert replay.take(0) == ()
    replay.drop(left)
    replay.check_integrity()
    assert (replay.num_slots_used, replay.num_prompts(0)) == (4, 3)
    assert [e.chunk for e in replay.take(0)] == [a, right]
    replay.release(0)
    assert replay.num_slots_used == 0


def test_lost_bytes_are_reserved_again() -> None:
    replay = Replay(prompts_per_step=4, max_lag=0)
    chunks = step_chunks(0)
    for chunk in chunks:
        replay.reserve(chunk)
        replay.put(entry(chunk, 0))
    replay.take(0)
    assert replay.remake() == chunks
    assert replay.num_bytes == 0
    replay.put(entry(chunks[0], 0, num_bytes=7))
    assert replay.num_bytes == 7


@pytest.mark.parametrize(("prompts_per_step", "max_lag"), [(0, 0), (1, -1)])
def test_impossible_sizes_are_refused(prompts_per_step: int, max_lag: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more and max_lag 0 or more"):
        Replay(prompts_per_step=prompts_per_step, max_lag=max_lag)


def test_a_chunk_is_reserved_once_and_put_only_when_reserved() -> None:
    replay = Replay(prompts_per_step=4, max_lag=1)
    chunk = step_chunks(0)[0]
    with pytest.raises(ValueError, match="chunk 0 of step 0 was put without a reservation"):
        replay.put(entry(chunk, 0))
    replay.reserve(chunk)
    with pytest.raises(ValueError, match="chunk 0 of step 0 is already in the replay"):
        replay.reserve(chunk)


def filled(config: ReplayConfig, *, rounds: int, max_lag: int) -> Replay:
    """A replay that holds `rounds` of version 0, of two chunks each, all ready."""
    replay = Replay(prompts_per_step=4, max_lag=max_lag, config=config)
    for number in range(rounds):
        for chunk in step_chunks(number):
            replay.reserve(chunk)
            replay.put(entry(chunk, 0))
    return replay


def test_first_in_first_out_uses_a_round_as_often_as_allowed() -> None:
    replay = filled(ReplayConfig(reuse=2), rounds=2, max_lag=3)
    rounds = []
    for version in range(4):
        rounds.append({e.chunk.step for e in replay.take(version)})
        replay.release(version)
        replay.check_integrity()
    assert rounds == [{0}, {0}, {1}, {1}]
    assert replay.num_slots_used == 0


@pytest.mark.parametrize("order", ["uniform", "prioritised"])
def test_any_samples_that_wait_are_drawn_and_the_same_ones_for_a_seed(order: Any) -> None:
    config = ReplayConfig(order=order)
    drawn = [[e.chunk.key for e in filled(config, rounds=4, max_lag=7).take(0)] for _ in range(2)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert len(drawn[0]) == 2
    assert len({rounds for rounds, _ in drawn[0]} | {0}) > 1  # not those of step 0 alone


def test_large_advantages_are_drawn_in_proportion_to_their_power() -> None:
    """Two chunks, of priorities 3 and 1, of which one is drawn: 3^0.5 : 1 with exponent 0.5."""
    first, count = 0, 4000
    for seed in range(count):
        config = ReplayConfig(order="prioritised", priority_exponent=0.5)
        replay = Replay(prompts_per_step=2, max_lag=3, config=config, seed=seed)
        for number, priority in ((0, 3.0), (1, 1.0)):
            (chunk,) = step_chunks(number, count=2)
            replay.reserve(chunk)
            replay.put(replace(entry(chunk, 0), priority=priority))
        (taken,) = replay.take(0)
        first += taken.chunk.step == 0
    share = 3**0.5 / (3**0.5 + 1)
    assert abs(first / count - share) < 4 * (share * (1 - share) / count) ** 0.5


def test_what_would_turn_too_old_unused_comes_first() -> None:
    """Three rounds of version 0 must be used by steps 0, 1 and 2; one of version 1 can wait."""
    for seed in range(20):
        replay = Replay(
            prompts_per_step=4, max_lag=2, config=ReplayConfig(order="uniform"), seed=seed
        )
        for number, version in ((0, 0), (1, 0), (2, 0)):
            for chunk in step_chunks(number):
                replay.reserve(chunk)
                replay.put(entry(chunk, version))
        replay.take(0)
        replay.release(0)
        for chunk in step_chunks(3):
            replay.reserve(chunk)
            replay.put(entry(chunk, 1))
        for version in (1, 2):
            assert {e.version for e in replay.take(version)} == {0}
            replay.release(version)
        assert replay.evict(3) == ()
        assert {e.version for e in replay.take(3)} == {1}


def test_a_use_lost_to_age_frees_its_slots() -> None:
    replay = filled(ReplayConfig(order="uniform", reuse=3), rounds=1, max_lag=2)
    replay.take(0)
    replay.release(0)
    assert replay.num_slots_used == 4
    assert replay.is_enough_for(2)
    assert not replay.is_enough_for(3)
    assert replay.evict(3) == ()
    assert replay.num_slots_used == 0
    assert not replay.is_enough_for(1)
    replay.check_integrity()


def test_sampling_waits_for_bytes() -> None:
    """10 bytes a chunk of two prompts: 20 a round, of which two fit and three do not."""
    replay = Replay(prompts_per_step=4, max_lag=3, config=ReplayConfig(max_mb=50e-6))
    assert replay.has_room(4)
    for number in range(2):
        for chunk in step_chunks(number):
            replay.reserve(chunk)
            replay.put(entry(chunk, 0))
    assert not replay.has_room(4)
    replay.take(0)
    replay.release(0)
    assert replay.has_room(4)


def test_a_budget_below_one_step_is_refused() -> None:
    replay = Replay(prompts_per_step=4, max_lag=0, config=ReplayConfig(max_mb=15e-6))
    chunk = step_chunks(0)[0]
    replay.reserve(chunk)
    with pytest.raises(ValueError, match=r"replay\.max_mb 1\.5e-05 is less than .*2e-05 MB of 4"):
        replay.put(entry(chunk, 0))


class Trainer(RuleBasedStateMachine):
    """A loop that samples with any version so far, loses bytes and is slow, in any order."""

    @initialize(max_lag=st.integers(0, 3), size=st.integers(1, 4))
    def start(self, max_lag: int, size: int) -> None:
        self.replay = Replay(prompts_per_step=4, max_lag=max_lag)
        self.size = size
        self.version = 0
        self.next_step = 0
        self.unsampled: list[Chunk] = []
        self.trained: list[int] = []
        self.in_training: int | None = None
        self.gone: set[tuple[int, int]] = set()

    @precondition(lambda self: self.replay.has_room(4))
    @rule()
    def reserve(self) -> None:
        for chunk in step_chunks(self.next_step, size=self.size):
            self.replay.reserve(chunk)
            self.unsampled.append(chunk)
        self.next_step += 1

    @precondition(lambda self: self.unsampled)
    @rule(data=st.data())
    def sample(self, data: st.DataObject) -> None:
        chunk = self.unsampled.pop(data.draw(st.integers(0, len(self.unsampled) - 1)))
        self.replay.put(entry(chunk, data.draw(st.integers(0, self.version))))

    @precondition(lambda self: self.unsampled)
    @rule(data=st.data())
    def poison(self, data: st.DataObject) -> None:
        """A chunk that cannot be made: cut into its prompts, of which the first is given up."""
        chunk = self.unsampled.pop(data.draw(st.integers(0, len(self.unsampled) - 1)))
        first, *others = self.replay.split(chunk)
        self.replay.drop(first)
        self.gone.add(first.key)
        self.unsampled += others

    @precondition(lambda self: self.in_training is None)
    @rule()
    def take(self) -> None:
        self.unsampled += self.replay.evict(self.version)
        entries = self.replay.take(self.version)
        if entries:
            assert all(self.version - e.version <= self.replay.max_lag for e in entries)
            left = [p for i, p in enumerate(prompts(4)) if (self.version, i) not in self.gone]
            assert [p for e in entries for p in e.chunk.prompts] == left
            self.in_training = self.version

    @precondition(lambda self: self.in_training is not None)
    @rule()
    def lose(self) -> None:
        self.unsampled += self.replay.remake()
        self.in_training = None

    @precondition(lambda self: self.in_training is not None)
    @rule()
    def publish(self) -> None:
        self.trained.append(self.version)
        self.version += 1
        self.replay.release(self.trained[-1])
        self.in_training = None

    @invariant()
    def nothing_is_lost_or_over_capacity(self) -> None:
        self.replay.check_integrity()
        assert self.trained == list(range(self.version))
        held = 4 * (self.next_step - self.version)
        assert self.replay.num_slots_used == held <= self.replay.capacity
        assert self.next_step - self.version <= self.replay.max_lag + 1


def test_the_replay_keeps_its_promises_in_any_order_of_events() -> None:
    run_state_machine_as_test(Trainer)


@given(count=st.integers(1, 20), size=st.integers(1, 7))
def test_chunks_cover_the_prompts_of_a_step_once_and_in_order(count: int, size: int) -> None:
    chunks = step_chunks(3, count=count, size=size)
    assert [p for chunk in chunks for p in chunk.prompts] == list(prompts(count))
    assert [chunk.first_prompt for chunk in chunks] == list(range(0, count, size))
    assert [chunk.key for chunk in chunks] == [(3, first) for first in range(0, count, size)]
