"""The gate: how much of a clip was heard, from the spans of it that were played.

Pure arithmetic on seconds. Knows nothing of listeners, clocks or databases.
"""

from __future__ import annotations

from collections.abc import Iterable

GRACE_SECONDS = 1.0
"""By which playback may be ahead of the server's clock: what the network moves about."""

Span = tuple[float, float]
"""Start and end of a stretch of a clip that was played, seconds from the clip's start."""


def heard_share(spans: Iterable[Span], clip_seconds: float) -> float:
    """Share, 0 to 1, of a clip that the spans cover; what is played twice counts once."""
    covered = reached = 0.0
    for start, end in sorted(spans):
        first, last = max(start, reached), min(end, clip_seconds)
        covered += max(0.0, last - first)
        reached = max(reached, last)
    return min(1.0, covered / clip_seconds)


def is_possible(spans: Iterable[Span], elapsed_seconds: float) -> bool:
    """Whether the spans can have been played one after another in that time."""
    return sum(end - start for start, end in spans) <= elapsed_seconds + GRACE_SECONDS
