"""`musicrl export`: a finetuned MusicGen as a folder that transformers loads.

It puts together a base, what was learned and what a run recorded; the folder and its card are
`musicrl/policies/export.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.config import load_config
from musicrl.policies.export import export as write
from musicrl.policies.export import export_adapter
from musicrl.policies.folder import read_json
from musicrl.policies.musicgen import MusicGen
from musicrl.rewards.preference import PREFERENCE, raters_of
from musicrl.settings import to_tree
from musicrl.world import find_world

EXAMPLE = "musicrl export path:musicgen-small --policy learned.safetensors"
TOLD = ("iterations", "seed", "last_step", "evaluation")
"""What the card needs of a summary.json."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a finetuned MusicGen in the Hub's form: first its base (path:DIR or hub:ID)."""

    policy: Path | None = None
    """What was learned: policy.safetensors of a run's checkpoint, or a folder of adapters of peft's
    form, which are merged."""
    adapter: Path | None = None
    """In place of a policy: a checkpoint's folder of a run with `model.lora`, whose adapters alone are
    written, in peft's form."""
    out: Path = Path("exported")
    """Folder to write; there must be none yet."""
    run: Path | None = None
    """Folder of the run that trained the policy: its summary.json and config.yaml go into the model
    card (none: the card says that no run is recorded)."""
    downloads: bool = False
    """Fetch a base of the Hub that is not in the local cache."""


def export(args: Sequence[str]) -> None:
    """Write the folder and say where it is."""
    if wants_help(args):
        return print_help(ExportConfig(), verb="export path:DIR")
    words, flags = split_words(args)
    config = read_settings(ExportConfig, flags)
    if len(words) != 1 or (config.policy is None) == (config.adapter is None):
        raise ValueError(f"export needs a base and --policy or --adapter, as in: {EXAMPLE}")
    summary, settings = (None, None) if config.run is None else _read_run(config.run)
    raters = None if config.run is None else _raters(config.run)
    model = MusicGen.load(words[0], downloads=config.downloads)
    told: dict[str, Any] = {
        "base": words[0],
        "summary": summary,
        "settings": settings,
        "raters": raters,
    }
    if config.adapter is not None:
        folder = export_adapter(model, config.adapter, config.out, **told)
    else:
        assert config.policy is not None
        model.load_policy(config.policy)
        folder = write(model, config.out, **told)
    print(f"{folder}: licence {model.licence}")


def _raters(run: Path) -> str | None:
    """Who the run's preference model learned from; None where it rewarded with none."""
    config = load_config(run / "config.yaml")
    reward = config.reward
    if PREFERENCE not in reward.weights:
        return None
    return raters_of(find_world(config.model.weights), reward.preference_file)


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / "summary.json"
    summary = read_json(path)
    for name in TOLD:
        if name not in summary:
            raise ValueError(f"{path} lacks {name!r}: it is no summary of a run")
    return summary, to_tree(load_config(folder / "config.yaml"))
