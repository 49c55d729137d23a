"""Who marks what next, on two texts that two policies played, checked by hand."""

from __future__ import annotations

from dataclasses import replace

from musicrl.preference.clip import PlayableClip
from musicrl.preference.marking import next_sets, to_compare
from tests.preference.playable import playable

REEL, JIG = ((playable(text, 0), playable(text, 1)) for text in (0, 1))
SETS = [REEL, JIG]


def left(rater: str, **marks: str) -> list[list[str]]:
    """Ids that the rater may be offered; `marks` names who marked clip 0 and 1 of text a and b."""
    clips = {"a0": REEL[0], "a1": REEL[1], "b0": JIG[0], "b1": JIG[1]}
    marked_by = {clips[name].clip.id: set(raters.split()) for name, raters in marks.items()}
    names = {clip.clip.id: name for name, clip in clips.items()}
    found = next_sets(SETS, marked_by, rater, enough=3)
    return [[names[clip.clip.id] for clip in clips] for clips in found]


def test_what_a_rater_began_comes_first() -> None:
    assert left("ann") == [["a0", "a1"], ["b0", "b1"]]
    assert left("ann", a0="ann") == [["a1"]]
    assert left("bob", a0="ann") == [["b0", "b1"]]
    assert left("ann", a0="ann", a1="ann") == [["b0", "b1"]]


def test_raters_count_who_marked_both() -> None:
    three = "bob cat dan"
    assert left("ann", a0=three, a1=three) == [["b0", "b1"]]
    # Three marks a clip, but only two raters of the pair: it goes on.
    assert left("ann", a0="bob cat eve", a1="bob cat fay", b0=three, b1=three) == [["a0", "a1"]]
    assert left("ann", a0=three, a1=three, b0=three, b1=three) == []
    assert left("ann", a0=f"{three} ann", a1=three, b0=three, b1=three) == [["a1"]]


def test_sets_are_of_one_clip_of_each_policy() -> None:
    def clip(index: int, policy: str) -> PlayableClip:
        made = playable(0, index)
        return replace(made, clip=replace(made.clip, policy=policy))

    clips = [clip(0, "old"), clip(1, "old"), clip(2, "new"), clip(3, "old"), clip(4, "new")]
    sets = [[c.clip.id for c in rank] for rank in to_compare(clips)]
    assert sets == [["clip-0-0", "clip-0-2"], ["clip-0-1", "clip-0-4"], ["clip-0-3"]]
