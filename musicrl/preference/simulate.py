"""`prefs simulate`: comparisons by simulated raters, with the figures that say what they are worth.

Clips are sampled or taken from a pool and scored once; pairs are then drawn from them, so that ten
thousands are cheap. Whatever comes out is called simulated: the file, its raters, its column and
its table. All of it is decided by the seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from musicrl.audio import resample
from musicrl.bounds import at_least
from musicrl.evaluation.music import PitchVariety, Sounding
from musicrl.preference.clip import PlayableClip
from musicrl.preference.dataset import write_comparisons
from musicrl.preference.pool import (
    SampledClips,
    SampledClipsConfig,
    hear_pool,
    read_pool,
    sample_clips,
)
from musicrl.preference.raters import (
    Floats,
    Ints,
    Pairs,
    SimulatedRaterConfig,
    SimulatedRaters,
    draw_pairs,
    draw_tastes,
    scaled,
)
from musicrl.preference.schema import SIMULATED
from musicrl.rewards.base import Reward
from musicrl.rewards.table import RewardWorld, make_reward
from musicrl.types import Comparison
from musicrl.worlds import load_world

MEASURES: Mapping[str, Callable[[], Reward]] = MappingProxyType(
    {"pitch-variety": PitchVariety, "sounding": Sounding}
)
"""Measures of the sound that a simulated rater may like; any reward may stand beside them."""
CALIBRATION_PAIRS = 2000
"""Pairs that the noise is set on."""
NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Let simulated raters compare clips."""

    out: Path = Path("simulated-preferences.parquet")
    """File to write; its name must contain 'simulated'."""
    pairs: int = 10_000
    seed: int = 0
    """Of the raters and the pairs."""
    pool: Path | None = None
    """Folder of `prefs pool` (none: clips are sampled now, as `clips` says)."""
    clips: SampledClipsConfig = field(default_factory=SampledClipsConfig)
    """With a pool, only the folder of the world that scores it is read."""
    rater: SimulatedRaterConfig = field(default_factory=SimulatedRaterConfig)
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        at_least(1, pairs=self.pairs)
        at_least(0, seed=self.seed)
        if "simulated" not in self.out.name:
            raise ValueError(f"out must be a name that contains 'simulated', got {self.out}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredClips:
    """C clips and all that raters may choose by."""

    clips: tuple[PlayableClip, ...]
    prompts: Ints
    """int64 [C]: number of each clip's prompt."""
    terms: Mapping[str, Floats]
    """float64 [C] each."""
    embeddings: Floats
    """float64 [C, D]."""
    unscored: int
    """Clips that were left out because a term of weight could not be computed."""


def simulate(config: SimulateConfig, console: Console | None = None) -> dict[str, object]:
    """Write the comparisons, print what they are like, write the JSON file if asked; what it holds.

    Raises ValueError when the raters cannot agree as configured, or for what cannot be scored.
    """
    scored = score_clips(config)
    rng = np.random.default_rng(config.seed)
    raters = make_raters(scored, config.rater, rng)
    pairs = draw_pairs(scored.prompts, config.pairs, rng)
    who, other = draw_two(config.rater.raters, config.pairs, rng)
    wins = rng.random(config.pairs) < raters.first_wins(pairs, who)
    again = hear_anew(raters, pairs, other, rng)
    write_comparisons(config.out, comparisons(scored.clips, pairs, who, wins, config.seed))
    figures = measure(scored, raters, pairs, wins, again)
    report = {"simulated": True, "file": str(config.out), "rater": asdict(config.rater), **figures}
    (console or Console()).print(_table(figures))
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def make_raters(
    scored: ScoredClips, config: SimulatedRaterConfig, rng: np.random.Generator
) -> SimulatedRaters:
    """Raters of the scored clips, their noise set on pairs of their own."""
    shared = np.zeros(len(scored.clips))
    for name, weight in config.weights.items():
        if weight:
            shared += weight * scaled(scored.terms[name], scored.prompts, name)
    tastes = draw_tastes(scored.embeddings, scored.prompts, config.raters, rng)
    return SimulatedRaters(
        shared, tastes, config, draw_pairs(scored.prompts, CALIBRATION_PAIRS, rng)
    )


def draw_two(raters: int, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Two different raters for each pair: the one whose choice is kept, and one to agree with."""
    first = rng.integers(raters, size=count)
    return first, (first + 1 + rng.integers(raters - 1, size=count)) % raters


def hear_anew(
    raters: SimulatedRaters, pairs: Pairs, who: Ints, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Whether the first clip of each pair wins, bool [M], with a rater who may hear it second."""
    swapped = Pairs(first=pairs.second, second=pairs.first)
    is_swapped = rng.random(len(who)) < 0.5
    there, back = raters.first_wins(pairs, who), 1 - raters.first_wins(swapped, who)
    wins: NDArray[np.bool_] = rng.random(len(who)) < np.where(is_swapped, back, there)
    return wins


def comparisons(
    clips: Sequence[PlayableClip], pairs: Pairs, who: Ints, wins: NDArray[np.bool_], seed: int
) -> Iterator[Comparison]:
    """The choices as comparisons, one at a time."""
    rows = zip(
        pairs.first.tolist(), pairs.second.tolist(), who.tolist(), wins.tolist(), strict=True
    )
    for number, (first, second, rater, first_wins) in enumerate(rows):
        yield Comparison(
            id=_identifier(seed, number, clips[first].clip.id, clips[second].clip.id),
            prompt=clips[first].prompt,
            clip_a=clips[first].clip,
            clip_b=clips[second].clip,
            choice="a" if first_wins else "b",
            heard_a=1.0,
            heard_b=1.0,
            rater=f"{SIMULATED}{seed}-{rater:05d}",
            simulated=True,
            time=NO_TIME,
        )


def measure(
    scored: ScoredClips,
    raters: SimulatedRaters,
    pairs: Pairs,
    wins: NDArray[np.bool_],
    again: NDArray[np.bool_],
) -> dict[str, object]:
    """What the choices are like: all shares of the pairs drawn."""
    better = {"ceiling": raters.shared, **scored.terms}
    follows = {name: _follows(values, pairs, wins) for name, values in better.items()}
    used = {scored.prompts[clip] for clip in np.concatenate([pairs.first, pairs.second]).tolist()}
    return {
        "simulated pairs": len(wins),
        "prompts": len(used),
        "clips": len(scored.clips),
        "clips without a score": scored.unscored,
        "simulated raters": len(raters.utilities),
        "temperature": raters.temperature,
        "agreement of two simulated raters, expected": raters.agreement(pairs),
        "agreement of two simulated raters, drawn": float((wins == again).mean()),
        "ceiling accuracy, knowing the shared utility": follows.pop("ceiling"),
        "the first clip won": float(wins.mean()),
        "the better clip won, by term": follows,
    }


def score_clips(config: SimulateConfig) -> ScoredClips:
    """The pool's clips, or clips sampled now, each scored once; those without a score left out."""
    world = load_world(config.clips.weights)
    if config.pool is None:
        batches: Iterable[SampledClips] = sample_clips(config.clips)
    else:
        batches = hear_pool(config.pool, read_pool(config.pool), world.sample_rate)
    terms = make_terms(config.rater.weights, world)
    clips: list[PlayableClip] = []
    rows, embeddings = [], []
    for batch in batches:
        clips += batch.clips
        prompts = [clip.prompt for clip in batch.clips]
        rows.append([term(prompts, batch.audio) for term in terms.values()])
        with torch.inference_mode():
            audio = resample(batch.audio.audio, world.sample_rate, world.embedder.sample_rate)
            vectors = world.embedder.embed_clip(torch.from_numpy(audio))
            embeddings.append(vectors.double().cpu().numpy())
    columns = [np.concatenate(column).astype(np.float64) for column in zip(*rows, strict=True)]
    scores = dict(zip(terms, columns, strict=True))
    needed = [scores[name] for name, weight in config.rater.weights.items() if weight]
    return _scored(clips, scores, np.concatenate(embeddings), needed)


def make_terms(weights: Mapping[str, float], world: RewardWorld) -> dict[str, Reward]:
    """The terms of the weights; one of weight 0 that this world has no model for is left out.

    Raises as `make_term`, and FileNotFoundError naming the model that another term lacks.
    """
    terms = {}
    for name, weight in weights.items():
        try:
            terms[name] = make_term(name, world)
        except FileNotFoundError as fault:
            if weight:
                raise FileNotFoundError(
                    f"{fault}; raters like {name!r}, unless told --rater.weights.{name} 0"
                ) from fault
    return terms


def make_term(name: str, world: RewardWorld) -> Reward:
    """A measure of the sound or a reward, by its name. Raises ValueError for an unknown one."""
    return MEASURES[name]() if name in MEASURES else make_reward(name, world)


def _scored(
    clips: Sequence[PlayableClip],
    terms: Mapping[str, Floats],
    embeddings: Floats,
    needed: Sequence[Floats],
) -> ScoredClips:
    """Without the clips that a needed term could not score, a silent one for instance."""
    heard = np.logical_and.reduce([np.isfinite(embeddings).all(1), *map(np.isfinite, needed)])
    kept = [clip for clip, is_heard in zip(clips, heard.tolist(), strict=True) if is_heard]
    names = {id: number for number, id in enumerate(dict.fromkeys(c.prompt.id for c in kept))}
    return ScoredClips(
        clips=tuple(kept),
        prompts=np.array([names[clip.prompt.id] for clip in kept], np.int64),
        terms={name: values[heard] for name, values in terms.items()},
        embeddings=embeddings[heard],
        unscored=len(clips) - len(kept),
    )


def _identifier(seed: int, number: int, first: str, second: str) -> str:
    """Of a comparison: another one for another pool under the same seed."""
    text = f"{seed}/{number}/{first}/{second}"
    return SIMULATED + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _follows(values: Floats, pairs: Pairs, wins: NDArray[np.bool_]) -> float | None:
    """Share of choices for the clip of the higher value, where both have one; a tie counts half.
    None where no pair has two."""
    margin = values[pairs.first] - values[pairs.second]
    right = np.where(margin == 0, 0.5, (margin > 0) == wins)[np.isfinite(margin)]
    return float(right.mean()) if len(right) else None


def _table(figures: Mapping[str, object]) -> Table:
    table = Table("simulated preferences", "value")
    for name, value in figures.items():
        rows = {name: value}
        if isinstance(value, Mapping):
            rows = {f"the better clip by {term} won": share for term, share in value.items()}
        for label, cell in rows.items():
            table.add_row(label, _cell(cell))
    return table


def _cell(value: object) -> str:
    """What could not be measured is a dash."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
