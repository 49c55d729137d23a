"""`musicrl fit-reward`: a preference model from files of comparisons, and what it is worth.

    <out>/preference.safetensors   the model, with its origin and its figures
    <out>/tensorboard/
    <out>/ablations/NAME/tensorboard/
    <out>/tokens.bin, .resume.safetensors    while it trains

How it learns stands in training.py, what is read in pairs.py, the paper's ablations in
ablations.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from musicrl.evaluation.origin import origin, own_policy, policy_file
from musicrl.lock import held
from musicrl.playable import PlayableWorld
from musicrl.policies.preference import PreferenceModel
from musicrl.preference.ablations import FULL, ablate, ablation_figures, ablation_table
from musicrl.preference.cursor import Cursor, new_parts
from musicrl.preference.inputs import Inputs
from musicrl.preference.pairs import Pairs, SelectionConfig, load_pairs
from musicrl.preference.predictions import COIN, Prediction
from musicrl.preference.training import CHECKPOINT, Fitted, TrainingConfig, train
from musicrl.rewards.preference import PREFERENCE_FILE
from musicrl.world import find_world
from musicrl.worlds import load_world

TOKENS = "tokens.bin"
MINIMUM_HELDOUT = 10
"""Held-out comparisons below which nothing is measured."""
PARTS_READ, LAST_ANSWER = "parts of the cursor", "last answer"
"""What a model's file says of the cursor that it learned from."""
TEXTS_AT_ONCE = 256
CEILING = "ceiling accuracy, knowing the shared utility"
"""Its name in the figures of `prefs simulate`."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Learn from comparisons what listeners prefer: the files first, then the options."""

    files: tuple[Path, ...] = ()
    """Parquet files of comparisons."""
    cursor: Path | None = None
    """Cursor of `prefs export --since`, in place of files: its parts are read; with `start` only
    those that the started model has not learned from."""
    out: Path = Path("reward")
    """Folder of the model; a fit that was interrupted there is continued."""
    weights: Path | None = None
    """Folder of the world that the clips are of (none: the shipped tiny world)."""
    policy: Path | None = None
    """Policy whose layers the model starts from: a file, checkpoint, run or name in the world's
    folder (none: the world's own)."""
    layers: int | None = None
    """First layers of the policy that are taken (none: all)."""
    start: Path | None = None
    """Preference model to continue from, in place of a policy."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    simulation: Path | None = None
    """Figures of `prefs simulate --json`, whose ceiling is shown beside the accuracy."""
    ablations: bool = False
    """Also train and measure the paper's ablations, each for as many steps; the model in `out` is
    the full one."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        if self.start is not None and (self.policy is not None or self.layers is not None):
            raise ValueError("start is a model of its own: policy and layers do not go with it")
        if self.cursor is not None and self.files:
            raise ValueError("comparisons come from files or from a cursor: give one of them")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a fit is made of, read once."""

    world: PlayableWorld
    policy: str
    """Name and digest of the policy that is started from."""
    inputs: Inputs


def fit(config: FitConfig, console: Console | None = None) -> dict[str, Any]:
    """Train the model, write its file, print what it is worth, write the JSON file if asked; what
    that holds.

    Raises ValueError or FileNotFoundError naming what cannot be read, is too little or does not
    fit, before a step is made, and ValueError where another process fits into `config.out`.
    """
    with held(config.out):
        return _fit(config, console or Console())


def _fit(config: FitConfig, console: Console) -> dict[str, Any]:
    if (config.out / PREFERENCE_FILE).exists():
        raise ValueError(f"{config.out} already holds a model: choose another folder with --out")
    ceiling = read_ceiling(config.simulation)
    config, read = find_parts(config, console)
    material = load_material(config)
    model = starting_model(config, material.world)
    fitted = train(model, material.inputs, config.training, config.out, name="preference model")
    facts = {**facts_of(config, material, fitted), **read}
    report = {**facts, "ceiling": ceiling, "reliability": fitted.prediction.figures["bins"]}
    _show(console, report, fitted.prediction)
    if config.ablations:
        rows = {FULL: fitted.prediction, **_ablate(config, material)}
        console.print(ablation_table(rows, str(report["raters"])))
        report["ablations"] = ablation_figures(rows)
    fitted.model.save(config.out / PREFERENCE_FILE, facts)
    write_report(config.json, report)
    _clear(config.out)
    return report


def find_parts(config: FitConfig, console: Console) -> tuple[FitConfig, dict[str, Any]]:
    """The settings with the cursor's new parts as files, and what the model's file will say of
    them; without a cursor, the settings as they are and nothing.

    Raises ValueError when there is nothing new, or where `start` learned from another cursor.
    """
    if config.cursor is None:
        return config, {}
    cursor, known = Cursor.read(config.cursor), {}
    if config.start is not None:
        known = PreferenceModel.from_file(config.start)[1]
    read = int(known.get(PARTS_READ, 0))
    try:
        parts = new_parts(cursor, read, str(known.get(LAST_ANSWER, "")))
    except ValueError as fault:
        raise ValueError(f"{config.start} does not go with {config.cursor}: {fault}") from fault
    if not parts:
        raise ValueError(
            f"nothing new: {config.cursor} holds no part after the {read} learned from"
        )
    rows = sum(part.rows for part in parts)
    console.print(f"{rows} new comparisons in {len(parts)} parts after {read}", highlight=False)
    files = tuple(config.cursor.parent / part.file for part in parts)
    facts = {PARTS_READ: len(cursor.parts), LAST_ANSWER: parts[-1].answer}
    # The cursor gives way to its parts: settings name comparisons in one way.
    return replace(config, files=files, cursor=None), facts


def _clear(folder: Path) -> None:
    """Delete what only an unfinished fit needs."""
    (folder / TOKENS).unlink()
    for checkpoint in folder.rglob(CHECKPOINT):
        checkpoint.unlink()


def _ablate(config: FitConfig, material: Material) -> dict[str, Prediction]:
    return ablate(
        lambda: starting_model(config, material.world),
        material.inputs,
        material.world,
        config.training,
        config.out / "ablations",
    )


def load_material(config: FitConfig) -> Material:
    """The world, the comparisons and the conditions of their texts. Raises as `fit`."""
    folder = find_world(config.weights)
    file = own_policy(folder) if config.policy is None else policy_file(config.policy, folder)
    world = load_world(folder, file)
    pairs = load_pairs(config.files, config.out / TOKENS, world.layout, config.selection)
    check_enough(pairs, config.training)
    if pairs.num_steps > world.policy.num_steps:
        raise ValueError(
            f"the clips have {pairs.num_steps} steps, the policy plays {world.policy.num_steps}"
        )
    inputs = Inputs(pairs=pairs, conditions=conditions_of(pairs.texts, world))
    return Material(world=world, policy=origin(file, world.policy), inputs=inputs)


def check_enough(pairs: Pairs, config: TrainingConfig) -> None:
    """Raise ValueError when there are too few comparisons to learn from or to measure with."""
    learned, held = len(pairs.train), len(pairs.heldout)
    needed = 1 if config.batch_prompts else config.batch_pairs
    if learned >= needed and held >= MINIMUM_HELDOUT:
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in pairs.dropped.items())
    raise ValueError(
        f"too few comparisons: {learned} to learn from (at least {needed} needed), {held} held out "
        f"(at least {MINIMUM_HELDOUT}; --selection.heldout is the share); "
        f"not used: {dropped or 'none'}"
    )


def conditions_of(
    texts: tuple[str, ...], world: PlayableWorld
) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Conditioning tokens int16 [P, C] of texts."""
    parts = [texts[i : i + TEXTS_AT_ONCE] for i in range(0, len(texts), TEXTS_AT_ONCE)]
    with torch.inference_mode():
        return torch.cat([world.conditioner(part) for part in parts]).numpy().astype(np.int16)


def starting_model(config: FitConfig, world: PlayableWorld) -> PreferenceModel:
    """The model before its first step. Raises ValueError where `start` is of another world."""
    if config.start is None:
        return PreferenceModel.from_policy(world.policy, layers=config.layers)
    model, _ = PreferenceModel.from_file(config.start, world.policy)
    if model.layout != world.layout:
        raise ValueError(f"{config.start} reads {model.layout}, the world has {world.layout}")
    return model


def read_ceiling(simulation: Path | None) -> float | None:
    """The accuracy of who knows what simulated raters share. Raises ValueError naming the file."""
    if simulation is None:
        return None
    try:
        figures = json.loads(simulation.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise ValueError(f"{simulation} is no JSON: {fault}") from fault
    if not isinstance(figures, dict) or CEILING not in figures:
        raise ValueError(f"{simulation} holds no {CEILING!r}")
    return float(figures[CEILING])


def facts_of(config: FitConfig, material: Material, fitted: Fitted) -> dict[str, Any]:
    """What the model's file says of itself."""
    pairs, prediction = material.inputs.pairs, fitted.prediction
    used = len(pairs.first_wins)
    licence = material.world.licence
    return {
        **({} if licence is None else {"licence": licence}),
        "origin": material.policy if config.start is None else str(config.start.name),
        "raters": _raters(pairs.simulated, used),
        "simulated comparisons": pairs.simulated,
        "comparisons learned from": len(pairs.train),
        "comparisons held out": len(pairs.heldout),
        "comparisons not used": dict(pairs.dropped),
        "prompts": len(pairs.texts),
        "listener": config.selection.listener,
        "newest": None if pairs.newest is None else pairs.newest.isoformat(),
        "window_steps": pairs.num_steps,
        "steps": fitted.steps,
        "best step": fitted.step,
        "accuracy": prediction.accuracy,
        "standard error": prediction.standard_error,
        "log-loss": prediction.log_loss,
        "log-loss of a coin": COIN,
        "calibration error": prediction.calibration_error,
        "deviation": fitted.deviation,
    }


def write_report(path: Path | None, report: Mapping[str, Any]) -> None:
    """The figures as JSON, where a file is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _raters(simulated: int, used: int) -> str:
    if not simulated:
        return "people"
    return "simulated" if simulated == used else "simulated and people"


def _show(console: Console, report: Mapping[str, Any], prediction: Prediction) -> None:
    table = Table(f"preference model ({report['raters']})", "value")
    for name, value in report.items():
        if name != "reliability":
            table.add_row(name, _cell(value))
    console.print(table)
    bins = Table("predicted: the first clip is preferred", "observed", "comparisons")
    for bin in prediction.bins:
        bins.add_row(f"{bin.predicted:.3f}", f"{bin.observed:.3f}", str(bin.count))
    console.print(bins)


def _cell(value: object) -> str:
    """What is not known is a dash."""
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {reason}" for reason, count in value.items()) or "0"
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
