"""The block table: which pages of the cache a row's positions lie in, counted by reference.

    positions of a row   0 .. 63   64 .. 127   128 ..
    its blocks           [  7    ,    2      ,   9   ]        free: 0 1 3 4 5 6 8

Rows of one prompt share its full pages; a page that one of them still writes has one owner. It
knows numbers of blocks and nothing of what they hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class OutOfBlocks(Exception):
    """There are fewer free blocks than asked for; nothing was taken."""


class BlockPool:
    """Blocks 0 .. num_blocks - 1, each free or held by one or more rows."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        """Positions of a block."""
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, positions: int) -> int:
        """How many blocks hold so many positions."""
        return -(-positions // self.block_size)

    def take(self, count: int) -> list[int]:
        """So many free blocks, held once each. Raises OutOfBlocks, and then takes none."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more row holds these blocks."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free and cannot be shared"
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One row less holds these blocks; those that nobody holds become free."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free and cannot be released"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free.append(block)

    def check_integrity(self, tables: Sequence[Sequence[int]], writing: Sequence[int]) -> None:
        """Raise AssertionError unless free + used == total, every block is held by just as many of
        the `tables` as counted, and no block of `writing` (where the rows write next, -1 for rows
        that write into none yet) belongs to two rows."""
        used = Counter(block for table in tables for block in table)
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert not used.keys() & set(self._free), "a block is free and held"
        assert len(self._free) + len(used) == self.num_blocks, "a block is neither free nor held"
        for block, holders in used.items():
            assert self._holders[block] == holders, f"block {block}: count differs from tables"
        for block in writing:
            assert block < 0 or self._holders[block] == 1, f"block {block} has two writers"
