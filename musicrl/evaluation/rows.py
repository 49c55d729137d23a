"""The rows of `musicrl evaluate`: policies, and folders of audio, on the same held-out prompts.

A base policy is always the first row. What is measured of each clip stands in `heldout.py`, of each
set of clips in `clipset.py`; who judges, in the ears of the world's family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from musicrl.audio import read_wav
from musicrl.evaluation.bars import GAP, bar_figures
from musicrl.evaluation.bestof import evaluate_best_of
from musicrl.evaluation.captions import cannot_tokenise, caption_gap, tokenise
from musicrl.evaluation.clipset import ClipSet, SetFigures, describe, join, set_figures
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.ears import Ears
from musicrl.evaluation.family import MUSICLM, Family
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import (
    EVALUATION_STEP,
    EvaluationChunk,
    EvaluationResult,
    divergence,
    evaluation_chunks,
    merge,
    score_chunk,
)
from musicrl.evaluation.kept import Kept, distance_change, kept, of_columns, paired_figures
from musicrl.evaluation.origin import BASE, policy_file
from musicrl.evaluation.pitch import StablePitch
from musicrl.evaluation.reconstruction import REAL
from musicrl.evaluation.reference import (
    RECONSTRUCTION,
    RealClips,
    References,
    measure_references,
)
from musicrl.evaluation.unseen import Combination, unseen_figures
from musicrl.playable import PlayableWorld
from musicrl.policies.base import Policy
from musicrl.prompts import FREEFORM, load_prompts
from musicrl.rewards.base import Reward
from musicrl.rewards.mix import RewardMix, make_mix
from musicrl.rollout import RolloutWorker
from musicrl.types import Clips, Prompt
from musicrl.world import World, find_world

NO_SCORE = "no clip of these prompts has such a score"
Row = tuple[EvaluationResult, ClipSet]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, by name of the row."""

    results: dict[str, EvaluationResult]
    """Of the base, each policy and each folder of audio."""
    sets: dict[str, SetFigures]
    """The same, after real clips and their reconstructions where there are real ones."""
    reference: str | None
    """What the distances of the sets are to; None: there are none."""
    codec: dict[str, dict[str, Figure]]
    """What the codec keeps of real clips, by number of levels; empty without any."""
    bars: dict[str, dict[str, Figure]]
    """What is asked of music (`bars.py`), of every row."""
    kept: dict[str, Kept]
    """What every row but the base's kept of music (`kept.py`)."""
    unseen: dict[str, dict[str, Figure]]
    """Of prompts whose combination of attributes no model met (`unseen.py`), of the rows that have
    any."""
    left_out: dict[str, str]
    """Figures that nobody could give, by name, and why."""


def evaluate_rows(
    config: EvaluateConfig, *, real: RealClips | None = None, family: Family = MUSICLM
) -> Evaluation:
    """The results and the sets of the base, of each policy and of each folder of audio, by name."""
    assert (real is None) == (config.world is None), "the real clips are those of the world"
    folder = find_world(config.weights)
    policies = {str(path): policy_file(path, folder) for path in config.policies}
    prompts = heldout(config, family)
    worlds = {name: family.load(folder, file) for name, file in policies.items()}
    base = family.load(folder, config.base and policy_file(config.base, folder))
    mix, ears = make_mix(config.reward, base), family.ears(folder)
    measured = (
        None
        if real is None
        else measure_references(
            real, base, ears, judges_for(config, ears), size=len(prompts), pitch=config.pitch
        )
    )
    gaps, no_gap = caption_gaps({BASE: base, **worlds}, measured)
    rows = {
        name: evaluate_policy(world, prompts, mix, ears, base=base.policy, config=config)
        for name, world in {BASE: base, **worlds}.items()
    }
    rows |= _best_of_rows(base, prompts, mix, ears, config)
    for audio in config.audio:
        rows[str(audio)] = evaluate_audio(audio, prompts, mix, ears, base, config=config)
    trained = frozenset[Combination]() if real is None else real.trained
    found = gather(rows, measured, config, base.layout.stream_names, gaps, trained)
    return replace(found, left_out={**ears.left_out, **no_gap, **found.left_out})


def caption_gaps(
    worlds: Mapping[str, PlayableWorld], measured: References | None
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """How far captions matter to each world's policy on real clips, float64 [B] by name, and why
    that is not known."""
    if measured is None:
        return {}, {}
    real, gaps, grids = measured.second, {}, None
    for name, world in worlds.items():
        if (why := cannot_tokenise(world, real.prompts)) is not None:
            return {}, {GAP: why}
        assert isinstance(world, World)
        grids = tokenise(world, real.clips) if grids is None else grids
        gaps[name] = caption_gap(world, grids, real.prompts)
    return gaps, {}


def gather(
    rows: Mapping[str, Row],
    measured: References | None,
    config: EvaluateConfig,
    streams: Sequence[str],
    gaps: Mapping[str, NDArray[np.float64]],
    trained: frozenset[Combination] = frozenset(),
) -> Evaluation:
    """Rows, with the distances of their sets: to real clips, or to those of a base that was named."""
    sets = {name: clips for name, (_, clips) in rows.items()}
    results = {name: result for name, (result, _) in rows.items()}
    if measured is None:
        reference, beside = sets[BASE] if config.base else None, {}
    else:
        reference, beside = measured.first, measured.beside
    figures = {k: set_figures(v, reference, streams) for k, v in {**beside, **sets}.items()}
    judged = {**(measured.judged if measured else {}), **results}
    return Evaluation(
        results=results,
        sets=figures,
        reference=REAL if measured else BASE if config.base else None,
        codec=measured.codec if measured else {},
        bars=bar_figures(judged, figures, {k: figure(v) for k, v in gaps.items()}, RECONSTRUCTION),
        kept={name: kept_of(rows, figures, gaps, name) for name in rows if name != BASE},
        unseen={k: v for k, result in results.items() if (v := unseen_figures(result, trained))},
        left_out=unscored(results),
    )


def kept_of(
    rows: Mapping[str, Row],
    figures: Mapping[str, SetFigures],
    gaps: Mapping[str, NDArray[np.float64]],
    name: str,
) -> Kept:
    """What a row kept of the base's music; distances are those to real clips alone."""
    paired = paired_figures(rows[BASE], rows[name])
    if BASE in gaps and name in gaps:
        paired[GAP] = of_columns(gaps[BASE], gaps[name])
    return kept(paired, distance_change(figures[BASE], figures[name]))


def unscored(results: Mapping[str, EvaluationResult]) -> dict[str, str]:
    """The columns in which no row has a score."""
    counts: dict[str, int] = {}
    for result in results.values():
        for name, found in result.figures.items():
            counts[name] = counts.get(name, 0) + found.count
    return {name: NO_SCORE for name, count in counts.items() if not count}


def _best_of_rows(
    base: PlayableWorld,
    prompts: Sequence[Prompt],
    mix: RewardMix,
    ears: Ears,
    config: EvaluateConfig,
) -> dict[str, Row]:
    return {
        f"{BASE}, best of {n}": evaluate_best_of(
            RolloutWorker(base, config.sampling),
            prompts,
            mix,
            ears,
            judges_for(config, ears),
            n=n,
            seed=config.seed,
            clips_per_chunk=config.prompts_per_chunk,
        )
        for n in config.best_of
    }


def evaluate_policy(
    world: PlayableWorld,
    prompts: Sequence[Prompt],
    mix: RewardMix,
    ears: Ears,
    *,
    base: Policy,
    config: EvaluateConfig,
) -> Row:
    """Sample one clip of each prompt and score it; the divergence is from `base`."""
    worker, judges = RolloutWorker(world, config.sampling), judges_for(config, ears)
    scores, divergences, sets = [], [], []
    for chunk in _progress(prompts, config):
        rollouts, clips = worker.generate(
            chunk.prompts,
            first_prompt_index=chunk.first,
            step=EVALUATION_STEP,
            run_seed=config.seed,
            samples_per_prompt=1,
            version=0,
        )
        tokens, conditions = (
            torch.from_numpy(array.astype(np.int64))
            for array in (rollouts.tokens, rollouts.conditions)
        )
        kept = None if rollouts.kept is None else torch.from_numpy(rollouts.kept)
        scores.append(score_chunk(chunk, clips, mix, judges))
        sets.append(describe(clips, ears, rollouts.tokens, [p.text for p in chunk.prompts]))
        divergences.append(
            divergence(chunk, world.policy, base, tokens, conditions, config.sampling, kept)
        )
    return merge(scores, divergences, world.layout.stream_names), join(sets)


def evaluate_audio(
    folder: Path,
    prompts: Sequence[Prompt],
    mix: RewardMix,
    ears: Ears,
    world: PlayableWorld,
    *,
    config: EvaluateConfig,
) -> Row:
    """Score `<prompt id>.wav` of each prompt, at the length of the world's clips.

    Raises FileNotFoundError or ValueError naming the file that is missing or unreadable.
    """
    judges = judges_for(config, ears)
    scores, sets = [], []
    for chunk in _progress(prompts, config):
        clips = read_clips([folder / f"{prompt.id}.wav" for prompt in chunk.prompts], world)
        scores.append(score_chunk(chunk, clips, mix, judges))
        sets.append(describe(clips, ears, texts=[prompt.text for prompt in chunk.prompts]))
    return merge(scores), join(sets)


def judges_for(config: EvaluateConfig, ears: Ears) -> tuple[Reward, ...]:
    """All judges, and that of pitch where it is asked for."""
    return (*ears.judges, *((StablePitch(),) if config.pitch else ()))


def read_clips(files: Sequence[Path], world: PlayableWorld) -> Clips:
    """Files as clips of the world's rate and length; longer ones are cut, shorter ones padded."""
    size = round(world.clip_seconds * world.sample_rate)
    audio = [read_wav(file, sample_rate=world.sample_rate)[:size] for file in files]
    padded = np.stack([np.pad(clip, (0, size - len(clip))) for clip in audio])
    return Clips(audio=padded, sample_rate=world.sample_rate)


def heldout(config: EvaluateConfig, family: Family = MUSICLM) -> tuple[Prompt, ...]:
    """The first held-out prompts, of the world or of a file. Raises ValueError when there are too few."""
    path = family.prompts(find_world(config.weights))
    if config.prompt_file is not None:
        path = FREEFORM if str(config.prompt_file) == FREEFORM.stem else config.prompt_file
    prompts = load_prompts(path, split="heldout")
    if len(prompts) < config.prompts:
        raise ValueError(f"prompts is {config.prompts}, but {path} holds only {len(prompts)}")
    return prompts[: config.prompts]


def _progress(prompts: Sequence[Prompt], config: EvaluateConfig) -> Iterable[EvaluationChunk]:
    chunks = evaluation_chunks(prompts, config.prompts_per_chunk)
    return track(chunks, description="evaluating", transient=True)
