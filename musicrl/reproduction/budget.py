"""How many updates fit into a time: a few of every model's updates and measurements are timed.

The plan is written down at once, so that a reproduction that is killed goes on with the same
numbers; how fast the machine is later on no longer matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

TIMED = 2
"""Updates of each model that are timed, after one that is not: the first is slower."""
TIMED_PROMPTS = 8


def affordable_updates(seconds: float, *, update: Mapping[float, float], measuring: float) -> int:
    """Updates of R for which all models fit into `seconds`.

    `update` maps each model's share of R's updates to the seconds of one; models of one share are
    added up by the caller. `measuring` are the seconds of all measurements. Raises ValueError when
    not one fits.
    """
    one = sum(share * cost for share, cost in update.items())
    updates = int((seconds - measuring) / one)
    if updates < 1:
        raise ValueError(
            f"budget_minutes {seconds / 60:g} is too little: measuring takes {measuring / 60:.1f} "
            f"minutes, one update of every model {one:.1f} s"
        )
    return updates


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
