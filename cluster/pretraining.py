"""The stages of a world in the order in which they need each other, and building all of them.

    world ─ prompts ─ codec ─ embedder ─ judge ─ calibration ─ semantic
          └ policy ─ policy-noisy ─ quality ─ quality-judge ─ preference-data ─ preference

Knows what each stage reads and writes; their settings stand in pretrain_config.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from rich.console import Console

from cluster.pretrain_config import COMPARISONS, PretrainConfig
from musicrl.evaluation.judges import CALIBRATION
from musicrl.lock import held
from musicrl.policies.preference import read_facts
from musicrl.preference.fit import FitConfig, fit
from musicrl.preference.simulate import simulate
from musicrl.preference.training import CHECKPOINT
from musicrl.pretrain.calibration import calibrate_tagger
from musicrl.pretrain.codec import fit_codec
from musicrl.pretrain.embedder import EmbedderStageConfig, train_embedder
from musicrl.pretrain.pipeline import run_stages
from musicrl.pretrain.policy import train_policy
from musicrl.pretrain.prompts import write_prompts
from musicrl.pretrain.quality import QualityStageConfig, train_quality
from musicrl.pretrain.render import find_soundfont
from musicrl.pretrain.report import report_of, to_table, write_report
from musicrl.pretrain.semantic import fit_semantic
from musicrl.pretrain.stage import Stage
from musicrl.pretrain.world import build_world
from musicrl.rewards.preference import PREFERENCE_FILE
from musicrl.rewards.quality import QUALITY_FILE, QUALITY_JUDGE_FILE
from musicrl.run import versions
from musicrl.settings import to_tree

COMPARED = "simulated.json"
PREFERENCE = "preference"
"""Folder of what the preference model is made of."""
FROM_CHECKPOINT, FROM_START = "goes on from its checkpoint", "starts again"
MODELS = ("codec", "embedder", "semantic")
"""Stages whose models make tokens of clips."""
PLACES = ("processes", "gpus", "soundfont", "notes", "ratings")
"""Settings that decide nothing, or name a file whose content is asked instead."""


def build(config: PretrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Bring the world to its end, print and write the report; what it holds.

    Raises ValueError or FileNotFoundError for what cannot be built, and ValueError where another
    process builds in `config.out`; what was finished stays.
    """
    with held(config.out):
        return _build(config, console or Console())


def _build(config: PretrainConfig, console: Console) -> dict[str, Any]:
    outcomes = run_stages(plan(config), config.out, console)
    report = report_of(outcomes, config.out, versions())
    write_report(report, config.out, config.json)
    console.print(to_table(report))
    console.print(f"{config.out / 'report.md'}: use it with --model.weights {config.out}/weights")
    return report


def plan(config: PretrainConfig) -> tuple[Stage, ...]:
    """The stages, each ready to run. Raises FileNotFoundError where there is no soundfont."""
    trained = (_trained(config, part) for part in PARTS)
    return (_rendering(config), *trained, _comparing(config), _fitting(config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stage that reads clips and weights, and writes weights."""

    name: str
    run: Callable[[Any], Mapping[str, float]]
    reads: tuple[str, ...] = ()
    """Stages beside `world`."""
    writes: tuple[str, ...]
    """Files among the weights."""
    has_checkpoint: bool = False
    minutes: float


PARTS = (
    Part(name="prompts", run=write_prompts, writes=("prompts.parquet",), minutes=0.1),
    Part(name="codec", run=fit_codec, writes=("codec.safetensors",), minutes=4),
    Part(
        name="embedder",
        run=train_embedder,
        writes=("embedder.safetensors",),
        has_checkpoint=True,
        minutes=20,
    ),
    Part(
        name="judge",
        run=train_embedder,
        writes=("judge.safetensors",),
        has_checkpoint=True,
        minutes=4,
    ),
    Part(name="calibration", run=calibrate_tagger, writes=(CALIBRATION,), minutes=2),
    Part(
        name="semantic",
        run=fit_semantic,
        reads=("embedder",),
        writes=("semantic.safetensors",),
        minutes=0.5,
    ),
    Part(
        name="policy",
        run=train_policy,
        reads=MODELS,
        writes=("policy.safetensors", "policy.json"),
        has_checkpoint=True,
        minutes=50,
    ),
    Part(
        name="policy-noisy",
        run=train_policy,
        reads=MODELS,
        writes=("policy-noisy.safetensors", "policy-noisy.json"),
        has_checkpoint=True,
        minutes=45,
    ),
    Part(
        name="quality",
        run=train_quality,
        reads=("codec", "embedder", "policy"),
        writes=(QUALITY_FILE,),
        has_checkpoint=True,
        minutes=20,
    ),
    Part(
        name="quality-judge",
        run=train_quality,
        reads=("codec", "embedder", "policy"),
        writes=(QUALITY_JUDGE_FILE,),
        has_checkpoint=True,
        minutes=8,
    ),
)


def _trained(config: PretrainConfig, part: Part) -> Stage:
    weights = config.out / "weights"
    given = getattr(config, part.name.replace("-", "_"))
    own = replace(given, world=config.out, weights=weights)
    hears_codec = isinstance(own, EmbedderStageConfig) and own.codec_levels > 0
    is_rated = isinstance(own, QualityStageConfig) and own.ratings is not None
    checkpoint = (f"weights/.{part.name}.resume.safetensors",) if part.has_checkpoint else ()
    return Stage(
        name=part.name,
        settings=_settings(given),
        run=lambda: part.run(own),
        reads=("world", *part.reads, *(("codec",) if hears_codec else ())),
        files=(own.ratings,) if is_rated else (),
        writes=tuple(f"weights/{name}" for name in part.writes),
        checkpoints=checkpoint,
        resumes=FROM_CHECKPOINT if part.has_checkpoint else FROM_START,
        minutes=part.minutes,
    )


def _rendering(config: PretrainConfig) -> Stage:
    world = replace(config.world, world=config.out)
    return Stage(
        name="world",
        settings=_settings(config.world),
        run=lambda: build_world(world),
        files=(world.notes, find_soundfont(world.soundfont)),
        writes=("world.json", "excerpts-*.parquet", "audio-*/*.npy"),
        resumes="keeps the shards that are whole",
        minutes=5,
    )


def _comparing(config: PretrainConfig) -> Stage:
    folder, given = config.out / PREFERENCE, config.preference_data
    clips = replace(given.clips, weights=config.out / "weights")
    own = replace(given, clips=clips, out=folder / COMPARISONS, json=folder / COMPARED)
    return Stage(
        name="preference-data",
        settings=_settings(given),
        run=lambda: _numbers(simulate(own)),
        reads=("prompts", "codec", "embedder", "policy", "policy-noisy", "quality"),
        writes=(f"{PREFERENCE}/{COMPARISONS}", f"{PREFERENCE}/{COMPARED}"),
        minutes=12,
    )


def _fitting(config: PretrainConfig) -> Stage:
    folder, weights = config.out / PREFERENCE, config.out / "weights"
    own = replace(
        config.preference,
        files=(folder / COMPARISONS,),
        out=folder,
        weights=weights,
        simulation=folder / COMPARED,
    )
    return Stage(
        name="preference",
        settings=_settings(config.preference),
        run=lambda: _fit(own, weights),
        reads=("preference-data", "codec", "embedder", "policy", "policy-noisy"),
        writes=(f"weights/{PREFERENCE_FILE}",),
        checkpoints=tuple(f"{PREFERENCE}/{name}" for name in (PREFERENCE_FILE, f"**/{CHECKPOINT}")),
        resumes=FROM_CHECKPOINT,
        minutes=8,
    )


def _fit(config: FitConfig, weights: Path) -> dict[str, float]:
    """The model, made where it is not yet, moved to the weights; what its file says of it."""
    made = config.out / PREFERENCE_FILE
    if not made.is_file():
        fit(config)
    facts = read_facts(made)
    partial = weights / f".{PREFERENCE_FILE}.partial"
    copyfile(made, partial)
    partial.replace(weights / PREFERENCE_FILE)
    return _numbers(facts)


def _numbers(figures: Mapping[str, object]) -> dict[str, float]:
    """The figures that are numbers."""
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _settings(given: object) -> dict[str, Any]:
    """What of a stage's settings decides its files."""
    return {name: value for name, value in to_tree(given).items() if name not in PLACES}
