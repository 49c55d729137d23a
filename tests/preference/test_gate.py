from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicrl.preference.gate import GRACE_SECONDS, heard_share, is_possible

TENTHS = st.integers(0, 60)
SPANS = st.lists(st.tuples(TENTHS, TENTHS).filter(lambda span: span[0] < span[1]), max_size=8)


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([], 0.0),
        ([(0.0, 1.0)], 0.25),
        ([(0.0, 1.0), (0.0, 1.0)], 0.25),  # the same second twice
        ([(3.0, 4.0), (0.0, 1.0)], 0.5),
        ([(1.0, 3.0), (2.0, 2.5), (2.5, 4.0)], 0.75),
        ([(0.0, 9.0)], 1.0),  # longer than the clip of 4 s
    ],
)
def test_share_of_a_clip_of_four_seconds(spans: list[tuple[float, float]], share: float) -> None:
    assert heard_share(spans, 4.0) == share


@given(spans=SPANS)
def test_share_is_that_of_the_tenths_that_were_played(spans: list[tuple[int, int]]) -> None:
    played = {tenth for start, end in spans for tenth in range(start, min(end, 50))}
    seconds = [(start / 10, end / 10) for start, end in spans]
    assert heard_share(seconds, 5.0) == pytest.approx(len(played) / 50)


def test_two_clips_at_once_take_more_time_than_there_was() -> None:
    both = [(0.0, 4.0), (0.0, 4.0)]
    assert is_possible(both, 8.0 - GRACE_SECONDS)
    assert not is_possible(both, 7.9 - GRACE_SECONDS)
