"""Who judges the clips of a MusicGen world: what it names, what ships, and what needs no model.

Distances are in the embedding that `world.yaml` names as its judge, and in the music
tagger's, which hears any audio. The tagger's opinions need the spread of its scores over real clips
of the world, which only a file in the folder knows; without it there are none.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from musicrl.evaluation.ears import Ears, Embed, embed_windows
from musicrl.evaluation.judges import (
    CALIBRATION,
    EMBEDDING,
    TAGGER,
    TagHearing,
    TagScores,
    embedding_judge,
    tag_judges,
    unlearned_judges,
)
from musicrl.evaluation.musicnn import Tagger
from musicrl.musicgen_world import WORLD_FILE, load_judge
from musicrl.rewards.base import Reward

NO_JUDGE = f"{WORLD_FILE} names no `judge`, an embedder other than the one of the reward"
NO_CALIBRATION = f"no {CALIBRATION} in the world's folder: `musicrl pretrain calibration` writes it"


def musicgen_ears(folder: Path) -> Ears:
    """Raises FileNotFoundError or ValueError naming the file or the setting at fault."""
    hearing, judge = TagHearing(Tagger()), load_judge(folder)
    judges: list[Reward] = []
    embedders: dict[str, Embed] = {"tagger": hearing.features}
    left_out: dict[str, str] = {}
    if judge is None:
        left_out[f"judge/{EMBEDDING}"] = NO_JUDGE
    else:
        judges.append(embedding_judge(judge))
        embedders["judge"] = partial(embed_windows, judge)
    if (folder / CALIBRATION).is_file():
        judges += tag_judges(TagScores(hearing, folder / CALIBRATION))
    else:
        left_out[f"judge/{TAGGER}"] = NO_CALIBRATION
    return Ears(judges=(*judges, *unlearned_judges()), embedders=embedders, left_out=left_out)
