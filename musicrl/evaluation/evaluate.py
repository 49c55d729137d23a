"""`musicrl evaluate`: policies, and folders of audio, on the same held-out prompts in one process.

A base policy is always the first row; every other row is paired with it, prompt by prompt. What is
measured of each clip stands in `heldout.py`, of each set of clips in `clipset.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from musicrl.audio import read_wav
from musicrl.evaluation.bestof import evaluate_best_of
from musicrl.evaluation.clipset import ClipSet, SetFigures, describe, join, set_figures
from musicrl.evaluation.figures import Figure
from musicrl.evaluation.heldout import (
    EVALUATION_STEP,
    EvaluationChunk,
    EvaluationResult,
    differences,
    divergence,
    evaluation_chunks,
    merge,
    score_chunk,
)
from musicrl.evaluation.judges import Ears, judges_of
from musicrl.evaluation.pitch import StablePitch, require_tracker
from musicrl.evaluation.reconstruction import REAL
from musicrl.evaluation.reference import RealClips, measure_references
from musicrl.evaluation.table import (
    codec_table,
    difference_table,
    frontier,
    frontier_table,
    result_table,
    set_table,
)
from musicrl.policies.base import Policy
from musicrl.prompts import FREEFORM, SHIPPED, load_prompts
from musicrl.rewards.base import Reward
from musicrl.rewards.mix import RewardConfig, RewardMix, make_mix, refuse_tokens
from musicrl.rollout import RolloutWorker
from musicrl.sampler.sampling import SamplingConfig
from musicrl.types import Clips, Prompt
from musicrl.world import SHIPPED as SHIPPED_WORLD
from musicrl.world import World

BASE = "base"
NO_REFERENCE = "no distances: they are to the real clips of --world, or to the clips of --base"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure policies on the fixed held-out prompts."""

    policies: tuple[Path, ...] = ()
    """Policy files, checkpoints or run folders to compare with the base."""
    base: Path | None = None
    """Policy that every row is compared with (none: the world's own)."""
    audio: tuple[Path, ...] = ()
    """Folders with one `<prompt id>.wav` for each held-out prompt, scored as rows of their own."""
    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    world: Path | None = None
    """Folder of rendered clips (`musicrl pretrain world`): distances between sets of clips are to
    real ones of its test split (none: to the clips of `base`, where that is given)."""
    prompts: int = 160
    """Held-out prompts; below 160 the gain of a single attribute drowns in noise."""
    prompt_file: Path | None = None
    """Prompts to take instead of the world's: a .parquet, .csv or .txt file, or `freeform`, 101
    prompts of this project for models of more than a tiny world."""
    best_of: tuple[int, ...] = ()
    """Numbers of clips of each prompt of which the base's best by reward is a row of its own."""
    prompts_per_chunk: int = 16
    """Prompts sampled together; the figures do not depend on it."""
    seed: int = 0
    """The same seed gives every policy the same random numbers."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    pitch: bool = False
    """Judge which clips of solo prompts have a stable pitch track and, with `world`, what the codec
    keeps of the pitch of real solos (needs the extra `judges`)."""
    json: Path | None = None
    """File that receives the figures and the scores of every prompt."""

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise ValueError(f"prompts must be 2 or more, got {self.prompts}")
        if self.prompts_per_chunk < 1:
            raise ValueError(f"prompts_per_chunk must be 1 or more, got {self.prompts_per_chunk}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if any(n < 2 for n in self.best_of) or len(set(self.best_of)) < len(self.best_of):
            raise ValueError(
                f"best_of must be different numbers from 2 on, got {list(self.best_of)}"
            )
        if self.pitch:
            require_tracker()
        if self.audio:
            refuse_tokens(self.reward)


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


def run_evaluation(
    config: EvaluateConfig, console: Console | None = None, *, real: RealClips | None = None
) -> dict[str, object]:
    """Measure every row, print the tables, write the JSON file if asked; what it holds.

    `real` are the clips of `config.world`, at best twice as many as there are prompts.
    """
    console = console or Console()
    evaluation = evaluate_rows(config, real=real)
    results = evaluation.results
    base, others = results[BASE], {k: v for k, v in results.items() if k != BASE}
    console.print(result_table(results))
    if others:
        console.print(difference_table({k: differences(base, v) for k, v in others.items()}))
    if len(frontier(results)) > 1:
        console.print(frontier_table(results))
    rows = {name: {**row.distances, **row.diversity} for name, row in evaluation.sets.items()}
    console.print(set_table(rows))
    to = evaluation.reference
    console.print(
        NO_REFERENCE if to is None else f"distances are to the {to} clips", soft_wrap=True
    )
    if evaluation.codec:
        console.print(codec_table(evaluation.codec))
    report = to_report(config, evaluation)
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def evaluate_rows(config: EvaluateConfig, *, real: RealClips | None = None) -> Evaluation:
    """The results and the sets of the base, of each policy and of each folder of audio, by name."""
    assert (real is None) == (config.world is None), "the real clips are those of the world"
    folder = config.weights or SHIPPED_WORLD
    policies = {str(path): policy_file(path, folder) for path in config.policies}
    prompts = heldout(config)
    worlds = {name: World.load(folder, file) for name, file in policies.items()}
    base = World.load(folder, config.base and policy_file(config.base, folder))
    mix, ears = make_mix(config.reward, base), Ears.load(config.weights)
    measured = (
        None
        if real is None
        else measure_references(real, base, ears, size=len(prompts), pitch=config.pitch)
    )
    rows = {
        name: evaluate_policy(world, prompts, mix, ears, base=base.policy, config=config)
        for name, world in {BASE: base, **worlds}.items()
    }
    for n in config.best_of:
        rows[f"{BASE}, best of {n}"] = evaluate_best_of(
            RolloutWorker(base, config.sampling),
            prompts,
            mix,
            ears,
            judges_for(config, ears),
            n=n,
            seed=config.seed,
            clips_per_chunk=config.prompts_per_chunk,
        )
    for folder in config.audio:
        rows[str(folder)] = evaluate_audio(folder, prompts, mix, ears, base, config=config)
    sets = {name: clips for name, (_, clips) in rows.items()}
    if measured is None:
        reference, beside = sets[BASE] if config.base else None, {}
    else:
        reference, beside = measured.first, measured.beside
    streams = base.layout.stream_names
    return Evaluation(
        results={name: result for name, (result, _) in rows.items()},
        sets={k: set_figures(v, reference, streams) for k, v in {**beside, **sets}.items()},
        reference=REAL if measured else BASE if config.base else None,
        codec=measured.codec if measured else {},
    )


def evaluate_policy(
    world: World,
    prompts: Sequence[Prompt],
    mix: RewardMix,
    ears: Ears,
    *,
    base: Policy,
    config: EvaluateConfig,
) -> tuple[EvaluationResult, ClipSet]:
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
    world: World,
    *,
    config: EvaluateConfig,
) -> tuple[EvaluationResult, ClipSet]:
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
    return (*judges_of(ears), *((StablePitch(),) if config.pitch else ()))


def read_clips(files: Sequence[Path], world: World) -> Clips:
    """Files as clips of the world's rate and length; longer ones are cut, shorter ones padded."""
    size = round(world.clip_seconds * world.sample_rate)
    audio = [read_wav(file, sample_rate=world.sample_rate)[:size] for file in files]
    padded = np.stack([np.pad(clip, (0, size - len(clip))) for clip in audio])
    return Clips(audio=padded, sample_rate=world.sample_rate)


def heldout(config: EvaluateConfig) -> tuple[Prompt, ...]:
    """The first held-out prompts, of the world or of a file. Raises ValueError when there are too few."""
    path = SHIPPED if config.weights is None else config.weights / "prompts.parquet"
    if config.prompt_file is not None:
        path = FREEFORM if str(config.prompt_file) == FREEFORM.stem else config.prompt_file
    prompts = load_prompts(path, split="heldout")
    if len(prompts) < config.prompts:
        raise ValueError(f"prompts is {config.prompts}, but {path} holds only {len(prompts)}")
    return prompts[: config.prompts]


def policy_file(path: Path, world: Path) -> Path:
    """The policy of a file (here, or in the world's folder), of a checkpoint folder, or of a run's
    newest checkpoint."""
    checkpoints = sorted((path / "checkpoints").glob("step_*/policy.safetensors"))
    found = [path, path / "policy.safetensors", *reversed(checkpoints), world / path]
    for file in found:
        if file.is_file():
            return file
    raise FileNotFoundError(f"no policy at {path}: neither a file, nor a checkpoint, nor a run")


def to_report(config: EvaluateConfig, evaluation: Evaluation) -> dict[str, object]:
    """What the JSON file holds."""
    results = evaluation.results
    base = results[BASE]
    return {
        "seed": config.seed,
        "temperature": config.sampling.temperature,
        "top_k": config.sampling.top_k,
        "rows": {name: result.to_json() for name, result in results.items()},
        "differences": {
            name: {key: change.to_json() for key, change in differences(base, result).items()}
            for name, result in results.items()
            if name != BASE
        },
        "sets": {
            "reference": evaluation.reference,
            "rows": {name: found.to_json() for name, found in evaluation.sets.items()},
        },
        "codec": {
            name: {key: found.to_json() for key, found in row.items()}
            for name, row in evaluation.codec.items()
        },
    }


def _progress(prompts: Sequence[Prompt], config: EvaluateConfig) -> Iterable[EvaluationChunk]:
    chunks = evaluation_chunks(prompts, config.prompts_per_chunk)
    return track(chunks, description="evaluating", transient=True)
