"""Lanes and virtual time, by hand-computed ends of jobs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.simulation.timeline import Lane, Timeline


def ends_of(lane: Lane, jobs: list[tuple[float, float, float]]) -> list[float]:
    """When jobs of (start, seconds, demand), in order of their start, end."""
    timeline, ends = Timeline(), [math.nan] * len(jobs)

    def ender(number: int) -> Callable[[], None]:
        def done() -> None:
            ends[number] = timeline.now

        return done

    for number, (start, seconds, demand) in enumerate(jobs):
        while timeline.advance(start):
            pass
        timeline.start(lane, seconds=seconds, demand=demand, done=ender(number))
    while timeline.advance(math.inf):
        pass
    return ends


def test_jobs_that_fit_do_not_slow_each_other() -> None:
    assert ends_of(Lane(2.0), [(0, 3, 1), (1, 4, 1)]) == pytest.approx([3, 5])


def test_a_crowded_lane_is_shared_alike() -> None:
    assert ends_of(Lane(1.0), [(0, 2, 1), (1, 2, 1)]) == pytest.approx([3, 4])


def test_a_wide_job_is_cut_like_the_narrow_one() -> None:
    # 3 of 2 cores are asked for: both run at two thirds, until the narrow one ends at 3.
    assert ends_of(Lane(2.0), [(0, 4, 2), (0, 2, 1)]) == pytest.approx([5, 3])


def test_busy_neighbours_slow_a_job_by_the_contention() -> None:
    # Side by side both run at 1 / 1.5; the second half of the longer one is alone.
    assert ends_of(Lane(2.0, 0.5), [(0, 2, 1), (0, 4, 1)]) == pytest.approx([3, 5])


def test_lanes_do_not_know_each_other() -> None:
    timeline, ends = Timeline(), list[float]()
    for _ in range(2):
        timeline.start(Lane(1.0), seconds=2, demand=1, done=lambda: ends.append(timeline.now))
    while timeline.advance(math.inf):
        pass
    assert ends == pytest.approx([2, 2])


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0.01, 5), st.sampled_from([0.5, 1.0, 2.0])),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([1.0, 2.0, 4.0]),
)
def test_no_job_ends_before_its_own_time_and_no_work_is_lost(
    jobs: list[tuple[float, float, float]], capacity: float
) -> None:
    jobs = sorted(jobs)
    ends = ends_of(Lane(capacity), jobs)
    assert all(
        end >= start + seconds - 1e-6 for (start, seconds, _), end in zip(jobs, ends, strict=True)
    )
    work = sum(seconds * demand for _, seconds, demand in jobs)
    latest = max(start for start, _, _ in jobs) + max(work / capacity, sum(s for _, s, _ in jobs))
    assert max(ends) <= latest + 1e-6
