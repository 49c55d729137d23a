"""`musicrl listen`: one static page of prompts and what each policy makes of them, to be heard.

    <out>/index.html               a row a prompt, a column a source; needs no server and no script
    <out>/audio/COLUMN/NN.mp3      a few kilobytes a second
    <out>/listening.json           what each file is, and the gain that it was written with

Clips are brought to one loudness for listening alone: nothing is measured here, and the gain stands
beside each clip, since prompts ask for loud and for soft ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from musicrl.audio import loudness
from musicrl.bounds import at_least
from musicrl.evaluation.heldout import EVALUATION_STEP
from musicrl.evaluation.listening_page import Cell, to_html
from musicrl.evaluation.origin import BASE, origin, own_policy, policy_file
from musicrl.evaluation.reconstruction import REAL
from musicrl.evaluation.reference import RECONSTRUCTION, fit, reconstruct
from musicrl.playable import PlayableWorld
from musicrl.prompts import SHIPPED, load_prompts
from musicrl.rollout import RolloutWorker
from musicrl.sampler.sampling import SamplingConfig
from musicrl.textfile import write_text
from musicrl.types import Clips, Prompt
from musicrl.world import SHIPPED as SHIPPED_WORLD
from musicrl.world import World

Load = Callable[[Path, Path | None], PlayableWorld]
"""The world of a folder, with another policy file if given."""

LOUDNESS_DB, PEAK_DB = -20.0, -1.0
"""Root-mean-square level that clips are brought to, and the peak that none goes above, dB below full
scale."""
PAGE, FACTS = "index.html", "listening.json"


@dataclass(frozen=True, kw_only=True)
class ListenConfig:
    """Make a static page of clips: the policies are the words before the options."""

    policies: tuple[Path, ...] = ()
    """Policy files, checkpoints, runs or names in the world's folder, a column each."""
    out: Path = Path("listening")
    """Folder of the page."""
    base: Path | None = None
    """Policy of the column `base` (none: the world's own)."""
    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    world: Path | None = None
    """Folder of rendered clips (`musicrl pretrain world`), for the columns `real` and
    `reconstruction` (none: there are none)."""
    prompts: int = 12
    """Held-out prompts, drawn evenly from all of them."""
    seed: int = 0
    """The same seed gives every policy the same random numbers."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    json: Path | None = None
    """File that receives what `listening.json` holds too."""

    def __post_init__(self) -> None:
        at_least(1, prompts=self.prompts)
        at_least(0, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One source of clips, a clip a prompt."""

    name: str
    origin: str
    """What made it, for who reads the file."""
    clips: Clips


def chosen_prompts(config: ListenConfig, file: Path | None = None) -> tuple[Prompt, ...]:
    """Held-out prompts of a file (none: of the world's folder), as far from each other in their
    table as they can be. Raises ValueError when there are too few."""
    own = SHIPPED if config.weights is None else config.weights / "prompts.parquet"
    path = file or own
    known = load_prompts(path, split="heldout")
    if len(known) < config.prompts:
        raise ValueError(f"prompts is {config.prompts}, but {path} holds only {len(known)}")
    return tuple(known[i * len(known) // config.prompts] for i in range(config.prompts))


def run_listening(
    config: ListenConfig,
    prompts: Sequence[Prompt],
    *,
    real: Clips | None = None,
    load: Load = World.load,
    console: Console | None = None,
) -> dict[str, object]:
    """Sample every policy, write the page, print what it holds; that as JSON has it.

    `real` has a clip for each prompt, where there are real ones. `load` reads the worlds. Raises
    FileNotFoundError or ValueError, before anything is written, for what cannot be sampled.
    """
    cells: dict[str, list[Cell]] = {}
    origins: dict[str, str] = {}
    for number, column in enumerate(columns(config, prompts, real, load)):
        cells[column.name] = write_column(config.out, number, column)
        origins[column.name] = column.origin
    facts = to_facts(config, prompts, origins, cells)
    write_text(config.out / PAGE, to_html(prompts, origins, cells, loudness=LOUDNESS_DB))
    for path in (config.out / FACTS, config.json):
        if path is not None:
            write_text(path, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    console = console or Console()
    console.print(to_table(origins, cells))
    console.print(f"{config.out / PAGE}", soft_wrap=True)
    return facts


def columns(
    config: ListenConfig, prompts: Sequence[Prompt], real: Clips | None, load: Load
) -> list[Column]:
    """All clips of the page."""
    folder = config.weights or SHIPPED_WORLD
    own = policy_file(config.base, folder) if config.base else own_policy(folder)
    files: dict[str, Path | None] = {BASE: own}
    names = column_names(config.policies)
    files |= {k: policy_file(path, folder) for k, path in zip(names, config.policies, strict=True)}
    worlds = {name: load(folder, file) for name, file in files.items()}
    found = []
    if real is not None:
        base = worlds[BASE]
        fitted = fit(real, base)
        levels = base.written_levels
        found.append(Column(name=REAL, origin="held-out clips of such a caption", clips=fitted))
        through = f"the same through the codec, {levels} levels"
        again = reconstruct(fitted, base)
        found.append(Column(name=RECONSTRUCTION, origin=through, clips=again))
    for name, world in track(worlds.items(), description="sampling", transient=True):
        made_by = origin(files[name], world.policy)
        found.append(Column(name=name, origin=made_by, clips=sampled(world, prompts, config)))
    return found


def column_names(policies: Sequence[Path]) -> list[str]:
    """Of each policy the last part of its path; the whole where that is not one of a kind."""
    short = [_short(path) for path in policies]
    taken = [*short, BASE, REAL, RECONSTRUCTION]
    pairs = zip(short, policies, strict=True)
    return [name if taken.count(name) == 1 else str(path) for name, path in pairs]


def _short(path: Path) -> str:
    """A checkpoint's file is a `policy` in every one: it keeps its path."""
    if path.name == "policy.safetensors" and len(path.parts) > 1:
        return str(path)
    return path.stem if path.suffix == ".safetensors" else path.name


def sampled(world: PlayableWorld, prompts: Sequence[Prompt], config: ListenConfig) -> Clips:
    """A clip of each prompt, as `musicrl evaluate` samples them."""
    _, clips = RolloutWorker(world, config.sampling).generate(
        tuple(prompts),
        first_prompt_index=0,
        step=EVALUATION_STEP,
        run_seed=config.seed,
        samples_per_prompt=1,
        version=0,
    )
    return clips


def write_column(out: Path, number: int, column: Column) -> list[Cell]:
    """The clips of a column as files."""
    return [
        write_clip(out, f"audio/{number:02d}/{index:02d}.mp3", audio, column.clips.sample_rate)
        for index, audio in enumerate(column.clips.channels)
    ]


def write_clip(out: Path, file: str, audio: NDArray[np.float32], sample_rate: int) -> Cell:
    """One clip [N] or [channels, N] at the common loudness, whole or not at all."""
    path = out / file
    path.parent.mkdir(parents=True, exist_ok=True)
    level, gain = float(loudness(audio.ravel())), gain_of(audio)
    partial = path.with_name(f".{path.name}.partial")
    scaled = np.atleast_2d(audio).T * np.float32(10 ** (gain / 20))
    soundfile.write(partial, scaled, sample_rate, format="MP3", subtype="MPEG_LAYER_III")
    partial.replace(path)
    return Cell(
        file=file,
        loudness=level if math.isfinite(level) else None,
        gain=gain,
        bytes=path.stat().st_size,
    )


def gain_of(audio: NDArray[np.float32]) -> float:
    """Gain, dB, that brings audio of any shape to `LOUDNESS_DB`, or as far as its peak allows; 0 for silence."""
    level = float(loudness(audio.ravel()))
    if not math.isfinite(level):
        return 0.0
    peak = 20 * math.log10(float(np.abs(audio).max()))
    return min(LOUDNESS_DB - level, PEAK_DB - peak)


def to_facts(
    config: ListenConfig,
    prompts: Sequence[Prompt],
    origins: Mapping[str, str],
    cells: Mapping[str, Sequence[Cell]],
) -> dict[str, object]:
    """What the page holds."""
    return {
        "seed": config.seed,
        "temperature": config.sampling.temperature,
        "loudness of every clip, dB": LOUDNESS_DB,
        "prompts": [{"id": prompt.id, "text": prompt.text} for prompt in prompts],
        "columns": {
            name: {
                "origin": origins[name],
                "clips": [
                    {"file": c.file, "loudness": c.loudness, "gain": c.gain, "bytes": c.bytes}
                    for c in row
                ],
            }
            for name, row in cells.items()
        },
    }


def to_table(origins: Mapping[str, str], cells: Mapping[str, Sequence[Cell]]) -> Table:
    """A row a column of the page."""
    table = Table("column", "origin", "clips", "kB", "mean loudness before, dB", "silent")
    for name, row in cells.items():
        levels = [cell.loudness for cell in row if cell.loudness is not None]
        mean = f"{sum(levels) / len(levels):.1f}" if levels else "-"
        size = f"{sum(cell.bytes for cell in row) / 1000:.0f}"
        silent = str(len(row) - len(levels))
        table.add_row(name, origins[name], str(len(row)), size, mean, silent)
    return table
