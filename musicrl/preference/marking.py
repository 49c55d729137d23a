"""Which clips a rater may mark next, so that enough raters hear both clips of every pair.

Clips of one text, one of each policy, are a set: a rater who marks one of them is led through the
rest, and a set is done when enough raters marked all of it. Who goes away after one clip therefore
costs a mark, and never a pair. Pure functions of who marked what: knows no store and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import zip_longest

from musicrl.preference.clip import PlayableClip

Clips = tuple[PlayableClip, ...]
NOBODY: AbstractSet[str] = frozenset()


def to_compare(clips: Iterable[PlayableClip]) -> list[Clips]:
    """Clips of a text in sets of one of each policy: the first of each, the second of each, ..."""
    of_policy: dict[str, list[PlayableClip]] = {}
    for clip in clips:
        of_policy.setdefault(clip.clip.policy, []).append(clip)
    ranks = zip_longest(*of_policy.values())
    return [tuple(clip for clip in rank if clip is not None) for rank in ranks]


def next_sets(
    sets: Sequence[Clips], marked_by: Mapping[str, AbstractSet[str]], rater: str, *, enough: int
) -> list[Clips]:
    """What is left to the rater of the sets that come first, all equally urgent: those that the
    rater began, else those that the fewest raters did. Empty when nothing needs this rater.

    `marked_by` says who marked each clip, by its id.
    """
    urgent: dict[int, list[Clips]] = {}
    for clips in sets:
        raters = [marked_by.get(clip.clip.id, NOBODY) for clip in clips]
        began, ended = set[str]().union(*raters), set(raters[0]).intersection(*raters)
        if rater in ended or (rater not in began and len(ended) >= enough):
            continue
        left = tuple(c for c, marked in zip(clips, raters, strict=True) if rater not in marked)
        urgent.setdefault(-1 if rater in began else len(began), []).append(left)
    return urgent[min(urgent)] if urgent else []
