"""The block table: counting, sharing, and the check that nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from musicrl.sampler.blocks import BlockPool, OutOfBlocks


def test_positions_are_rounded_up_to_blocks() -> None:
    pool = BlockPool(10, 4)
    assert [pool.blocks_for(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_too_many_are_refused_and_none_taken() -> None:
    pool = BlockPool(3, 4)
    held = pool.take(2)
    with pytest.raises(OutOfBlocks, match="2 blocks asked for, 1 free"):
        pool.take(2)
    assert pool.num_free == 1
    pool.check_integrity([held], [])


def test_a_shared_block_is_free_when_the_last_holder_lets_go() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.take(1)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_free == 1
    pool.release(blocks)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="is free and cannot be released"):
        pool.release(blocks)
    with pytest.raises(AssertionError, match="is free and cannot be shared"):
        pool.share(blocks)


def test_the_check_finds_what_is_wrong() -> None:
    pool = BlockPool(4, 4)
    first = pool.take(2)
    pool.share(first[:1])
    second = [*first[:1], *pool.take(1)]
    pool.check_integrity([first, second], [first[1], second[1], -1])
    with pytest.raises(AssertionError, match="two writers"):
        pool.check_integrity([first, second], [first[0]])
    with pytest.raises(AssertionError, match="neither free nor held"):
        pool.check_integrity([first], [])
    with pytest.raises(AssertionError, match="count differs"):
        pool.check_integrity([first, second, first], [])
    with pytest.raises(AssertionError, match="free and held"):
        pool.check_integrity([first, second, [3]], [])


class Tables(RuleBasedStateMachine):
    """Rows that take, fork and let go, beside a list of what each holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7, 4)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, 4))
    def take(self, count: int) -> None:
        free = self.pool.num_free
        if count > free:
            with pytest.raises(OutOfBlocks):
                self.pool.take(count)
            assert self.pool.num_free == free
        else:
            self.tables.append(self.pool.take(count))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        shared = table[: data.draw(st.integers(0, len(table)))]
        self.pool.share(shared)
        self.tables.append(list(shared))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity(self.tables, [])
        held = {block for table in self.tables for block in table}
        assert self.pool.num_free == 7 - len(held)


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
