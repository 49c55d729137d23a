"""Stragglers: of a slow task and its copy, one answer counts; of work that is made again, all do."""

from __future__ import annotations

import pytest

from actors.pool import Peer
from cluster.stragglers import LEAST_TASKS, Stragglers
from cluster.supervise import Fault, Lost, Pending, Task
from tests.cluster.test_supervise import Finished

DEAD = Lost(fault=Fault.PEER, error=ConnectionError("gone"))


def task(name: str, subject: str = "chunk 0") -> Task:
    return Task(kind="sample", peer=Peer(name=name, actor=None), doing="sampling", subject=subject)


@pytest.fixture
def slow() -> Task:
    return task("sampler 0")


@pytest.fixture
def stragglers(slow: Task) -> Stragglers:
    """One task is out, for 100 s, where others took one."""
    times = iter([0.0, 100.0, 100.0, 100.0])
    pending = Pending(Finished({}), timeout_seconds=1000, clock=lambda: next(times))
    pending.add("slow", slow)
    stragglers = Stragglers(pending, factor=3.0)
    for _ in range(LEAST_TASKS):
        stragglers(task("sampler 1", "chunk 1"), "report", 0.0, 1.0)
    return stragglers


def test_a_slow_task_is_found_until_it_has_a_copy(stragglers: Stragglers, slow: Task) -> None:
    assert stragglers.find("sample", epoch=0) is slow
    assert stragglers.find("sample", epoch=0) is slow
    stragglers.pair(slow, task("sampler 1"))
    assert stragglers.find("sample", epoch=0) is None


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("results", "counts"),
    [
        (("report", "report"), (True, False)),
        (("report", DEAD), (True, False)),
        ((DEAD, "report"), (False, True)),
        ((DEAD, DEAD), (False, True)),
    ],
)
def test_the_first_answer_counts_and_the_last_loss(
    stragglers: Stragglers,
    slow: Task,
    first: int,
    results: tuple[object, object],
    counts: tuple[bool, bool],
) -> None:
    pair = slow, task("sampler 1")
    stragglers.pair(*pair)
    order = pair[first], pair[1 - first]
    heard = [stragglers.settle(one, result) for one, result in zip(order, results, strict=True)]
    assert tuple(heard) == counts
    assert not stragglers._copies


def test_work_that_is_made_again_counts_while_its_slow_task_is_still_out(
    stragglers: Stragglers, slow: Task
) -> None:
    copy, again = task("sampler 1"), task("sampler 2")
    stragglers.pair(slow, copy)
    assert stragglers.settle(copy, "report")  # and then its bytes were lost
    assert stragglers.settle(again, "report")
    assert not stragglers.settle(slow, "report")
