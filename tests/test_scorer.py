"""What the scorer tells of a chunk beside its rewards."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.scorer import mean_advantage
from musicrl.types import RewardBatch


def batch(total: list[float], valid: list[bool]) -> RewardBatch:
    return RewardBatch(total=np.array(total, np.float32), terms={}, valid=np.array(valid))


def test_the_mean_advantage_by_hand() -> None:
    """Prompt one: 1, 2, 6 have 4, 3.5 and 1.5 as means of the others, so 3, 1.5, 4.5 as distances.
    Prompt two: its only valid pair, 0 and 4, has 4 and 4."""
    rewards = batch([1, 2, 6, 0, 9, 4], [True, True, True, True, False, True])
    assert mean_advantage(rewards, 3) == pytest.approx((3 + 1.5 + 4.5 + 4 + 4) / 5)


def test_without_others_there_is_no_advantage() -> None:
    assert mean_advantage(batch([1, 2], [True, True]), 1) == 0.0
    assert mean_advantage(batch([1, 2], [False, True]), 2) == 0.0
