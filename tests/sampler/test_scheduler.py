"""The scheduler alone: order, forks, giving way, coming back."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.sampler.blocks import BlockPool
from musicrl.sampler.scheduler import Plan, Scheduler
from musicrl.sampler.sequence import Branch, Sequence

PROMPT, OTHER, NULL = (1, 2, 3), (4, 5, 6), (-1, -1, -1)


def make_scheduler(num_blocks: int, *, prefix: int = 3, rows: int = 8, slots: int = 8) -> Scheduler:
    """Blocks of four positions."""
    pool = BlockPool(num_blocks, 4)
    return Scheduler(pool, num_prefix=prefix, max_rows=rows, num_slots=slots)


def make_sequence(
    number: int, *prompts: tuple[int, ...], steps: int = 4, done: int = 0
) -> Sequence:
    return Sequence(
        id=number,
        seed=number,
        branches=tuple(Branch(prompt) for prompt in prompts or (PROMPT,)),
        tokens=np.zeros((steps, 1), np.int16),
        logprobs=np.zeros((steps, 1), np.float32),
        kept=None,
        step=done,
    )


def run(scheduler: Scheduler, plan: Plan, steps: int | None = None) -> list[int]:
    """Take the plan's steps; the numbers of those that finish."""
    for sequence in scheduler.running:
        sequence.step += plan.num_steps if steps is None else steps
    scheduler.check_integrity()
    return [sequence.id for sequence in scheduler.finish()]


def test_samples_of_a_prompt_are_forked_from_the_first() -> None:
    scheduler = make_scheduler(8, prefix=6)
    for number in range(3):
        scheduler.add(make_sequence(number, steps=2))
    plan = scheduler.schedule()
    scheduler.check_integrity()
    first, second, third = (sequence.branches[0] for sequence in scheduler.running)
    assert [branch for branch, _ in plan.prefills] == [first]
    assert first.blocks[0] == second.blocks[0] == third.blocks[0]  # six positions: one full block
    assert len({branch.blocks[1] for branch in (first, second, third)}) == 3
    assert plan.copies == [(first.blocks[1], b.blocks[1]) for b in (second, third)]
    assert first.slot == second.slot == third.slot
    assert scheduler.pool.num_free == 8 - 4
    assert plan.num_steps == 2
    assert run(scheduler, plan) == [0, 1, 2]
    assert scheduler.pool.num_free == 8


def test_a_prompt_of_whole_blocks_is_shared_without_a_copy() -> None:
    scheduler = make_scheduler(8, prefix=4)
    scheduler.add(make_sequence(0))
    scheduler.add(make_sequence(1))
    plan = scheduler.schedule()
    scheduler.check_integrity()
    assert plan.copies == []
    assert len(plan.prefills) == 1
    assert scheduler.pool.num_free == 8 - 3


def test_the_null_prompt_is_encoded_once_for_all() -> None:
    scheduler = make_scheduler(16)
    scheduler.add(make_sequence(0, PROMPT, NULL))
    scheduler.add(make_sequence(1, OTHER, NULL))
    plan = scheduler.schedule()
    assert [branch.conditions for branch, _ in plan.prefills] == [PROMPT, NULL, OTHER]
    nulls = [sequence.branches[1] for sequence in scheduler.running]
    assert nulls[0].slot == nulls[1].slot
    assert plan.copies == [(nulls[0].blocks[0], nulls[1].blocks[0])]


def test_rounds_end_where_a_block_or_a_sample_ends() -> None:
    scheduler = make_scheduler(4)
    scheduler.add(make_sequence(0, steps=7))
    rounds = []
    while not scheduler.is_idle:
        plan = scheduler.schedule()
        rounds.append(plan.num_steps)
        run(scheduler, plan)
    assert rounds == [1, 4, 2]  # positions 3 | 4-7 | 8-9


def test_the_youngest_gives_way_and_comes_back_when_all_of_it_fits() -> None:
    scheduler = make_scheduler(4, prefix=3)  # each needs 3 blocks in the end
    for number in range(2):
        scheduler.add(make_sequence(number, (number,) * 3, steps=8))
    plan = scheduler.schedule()
    assert [s.id for s in scheduler.running] == [0, 1]
    run(scheduler, plan)  # one step: positions 0-3
    run(scheduler, scheduler.schedule())  # both take their second block: positions 4-7
    plan = scheduler.schedule()
    scheduler.check_integrity()
    assert [s.id for s in scheduler.running] == [0]
    assert [s.id for s in scheduler.waiting] == [1]
    assert scheduler.num_preempted == 1
    assert scheduler.waiting[0].step == 5  # what it drew is kept
    assert run(scheduler, plan) == [0]
    plan = scheduler.schedule()
    assert [sequence.id for _, sequence in plan.prefills] == [1]
    assert run(scheduler, plan) == [1]
    assert scheduler.pool.num_free == 4


def test_one_who_gave_way_waits_for_room_for_all_of_it() -> None:
    scheduler = make_scheduler(3, prefix=3)
    scheduler.add(make_sequence(0, steps=1))
    scheduler.add(make_sequence(1, OTHER, steps=8, done=1))  # as if it had given way
    plan = scheduler.schedule()
    assert [s.id for s in scheduler.running] == [0]
    assert scheduler.pool.num_free == 2  # enough for its next step, not for its eight
    run(scheduler, plan)
    scheduler.schedule()
    assert [s.id for s in scheduler.running] == [1]


def test_nobody_overtakes() -> None:
    scheduler = make_scheduler(3, prefix=7)
    scheduler.add(make_sequence(0, steps=1))
    scheduler.add(make_sequence(1, OTHER, steps=1))  # two blocks: does not fit beside it
    scheduler.add(make_sequence(2, steps=1))  # would fit: it shares a block
    scheduler.schedule()
    assert [s.id for s in scheduler.running] == [0]


@pytest.mark.parametrize(("rows", "slots", "expected"), [(2, 8, 2), (8, 3, 3), (1, 1, 1)])
def test_rows_and_slots_are_bounds(rows: int, slots: int, expected: int) -> None:
    scheduler = make_scheduler(20, rows=rows, slots=slots)
    for number in range(5):
        scheduler.add(make_sequence(number, (number,) * 3))
    scheduler.schedule()
    scheduler.check_integrity()
    assert len(scheduler.running) == expected


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(4)
    scheduler.add(make_sequence(0, steps=13))
    wanted = "a sample of 14 steps needs 5 blocks of 4 positions and 1 rows: there are 4 "
    with pytest.raises(ValueError, match=wanted):
        scheduler.add(make_sequence(1, steps=14))
    with pytest.raises(ValueError, match="needs 6 blocks"):
        scheduler.add(make_sequence(2, PROMPT, NULL, steps=9))


def test_dropping_everybody_frees_everything() -> None:
    scheduler = make_scheduler(8)
    for number in range(4):
        scheduler.add(make_sequence(number, steps=9))
    scheduler.schedule()
    scheduler.drop()
    scheduler.check_integrity()
    assert scheduler.is_idle
    assert scheduler.pool.num_free == 8
