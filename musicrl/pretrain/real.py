"""Real clips for evaluation: of a folder of clips, or rendered now by any soundfont.

Those rendered now are the excerpts of held-out tunes that `musicrl pretrain world` puts into its
test split, so that two soundfonts play the same music.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from musicrl.evaluation.reference import RealClips
from musicrl.evaluation.unseen import Combination
from musicrl.pretrain.attributes import UNKNOWN, Attributes, caption
from musicrl.pretrain.excerpts import load_pieces, plan_excerpts
from musicrl.pretrain.progress import track
from musicrl.pretrain.render import Renderer, require_synthesiser
from musicrl.pretrain.world import NOTES, WorldData, read_plan
from musicrl.types import Clips, Prompt

SPLIT = "test"


def real_clips(world: Path, count: int) -> RealClips:
    """The first clips of a rendered world's test split, `count` or all that it has.

    Raises FileNotFoundError or ValueError naming the folder when it holds no such split.
    """
    data = WorldData(world, SPLIT)
    indices = range(min(count, len(data)))
    texts = data.captions(indices, Random(0), complete=True)
    pairs = zip(texts, data.attributes, strict=False)
    return RealClips(
        clips=Clips(audio=data.audio(indices).numpy(), sample_rate=data.sample_rate),
        prompts=tuple(as_prompt(text, known, i) for i, (text, known) in enumerate(pairs)),
        trained=combinations(world),
    )


def combinations(world: Path) -> frozenset[Combination]:
    """The attributes of a world's clips of the train split, by its plan; empty where it has no plan,
    or one of captions alone."""
    plan = world / "excerpts-train.parquet"
    known = read_plan(plan)[0] if plan.is_file() else []
    return frozenset(row.combination for row in known if row is not UNKNOWN)


def rendered_clips(
    soundfont: Path, count: int, *, sample_rate: int, seconds: float, notes: Path = NOTES
) -> RealClips:
    """The first excerpts of the test split's plan, played by a soundfont, `seconds` each.

    Raises FileNotFoundError or ModuleNotFoundError naming the soundfont or what to install.
    """
    require_synthesiser()
    if not soundfont.is_file():
        raise FileNotFoundError(f"no soundfont at {soundfont}")
    plan = plan_excerpts(load_pieces(notes), split=SPLIT, count=count, seconds=seconds, seed=0)
    renderer = Renderer(soundfont, sample_rate=sample_rate, seconds=seconds)
    excerpts, rng = list(plan), Random(0)
    rows = [renderer.render(e) for e in track(excerpts, description=f"rendering {soundfont.name}")]
    audio = np.stack(rows).astype(np.float32) / np.float32(32768)
    known = [excerpt.attributes for excerpt in excerpts]
    texts = [caption(row, rng, complete=True) for row in known]
    return RealClips(
        clips=Clips(audio=audio, sample_rate=sample_rate),
        prompts=tuple(
            as_prompt(t, a, i) for i, (t, a) in enumerate(zip(texts, known, strict=True))
        ),
    )


def as_prompt(text: str, known: Attributes, number: int) -> Prompt:
    """A clip's caption, with its attributes where it has any."""
    pairs = {} if known is UNKNOWN else known.as_row()
    attributes = tuple((name, value) for name, value in pairs.items() if value is not None)
    return Prompt(id=f"real-{number}", text=text, source="real", attributes=attributes)
