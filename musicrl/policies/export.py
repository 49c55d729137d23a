"""A finetuned MusicGen back in the Hub's form: a folder that transformers loads.

The decoder's tensors are the policy's; text encoder, codec, tokeniser and settings are those of the
folder that it was loaded from. The model card says what was done to it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from musicrl.policies.folder import INDEX, WEIGHTS, read_json, read_tensors
from musicrl.policies.lora import saved
from musicrl.policies.musicgen import MusicGen, to_checkpoint
from musicrl.policies.peft import merge_adapter, write_adapter

CARD = "README.md"
DTYPES = ("dtype", "torch_dtype")
"""Settings that name the precision of the weights."""


def export(
    model: MusicGen,
    folder: Path,
    *,
    base: str,
    summary: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    raters: str | None = None,
) -> Path:
    """Write the model to `folder`, whole or not at all; the folder.

    `base` is the reference that the model was loaded by; `summary` is what a run left in its
    summary.json (none: no run is recorded), `settings` its resolved configuration, `raters` who the
    model of the reward `preference` learned from (none: there is none). Weights are float32. Raises
    ValueError when the folder is there already.
    """
    card = model_card(model, base=base, summary=summary, settings=settings, raters=raters)
    with _whole(folder) as partial:
        shutil.copytree(model.folder, partial, ignore=_left_out)
        values = _in_float32(read_json(model.folder / "config.json"))
        (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        save_file(tensors_of(model), partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CARD).write_text(card)
    return folder


def export_adapter(
    model: MusicGen,
    checkpoint: Path,
    folder: Path,
    *,
    base: str,
    summary: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    raters: str | None = None,
) -> Path:
    """Write the adapters of a run's checkpoint, which are of `model`, in the form of `peft`; else as
    `export`. Raises ValueError also when the checkpoint has none, or others than `model` has room for.
    """
    card = model_card(
        model, base=base, summary=summary, settings=settings, raters=raters, library="peft"
    )
    adapters, config = saved(checkpoint)
    with _whole(folder) as partial:
        partial.mkdir()
        place = base.removeprefix("hub:").removeprefix("path:")
        write_adapter(adapters, config, partial, base=place)
        merge_adapter(to_checkpoint(model.policy.state_dict(), model.policy.config), partial)
        (partial / CARD).write_text(card)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Where to make a folder that gets its name once it is finished. Raises ValueError when it is
    there already."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        yield Path(scratch) / folder.name
        (Path(scratch) / folder.name).rename(folder)


def tensors_of(model: MusicGen) -> dict[str, Tensor]:
    """All tensors of the checkpoint, the policy's in place of those that it was loaded from."""
    policy = model.policy
    own = {name: tensor.detach().cpu() for name, tensor in policy.state_dict().items()}
    tensors = read_tensors(model.folder)
    learned = to_checkpoint(own, policy.config)
    return {name: learned.get(name, old).contiguous().clone() for name, old in tensors.items()}


def model_card(
    model: MusicGen,
    *,
    base: str,
    summary: Mapping[str, Any] | None,
    settings: Mapping[str, Any] | None = None,
    raters: str | None = None,
    library: str = "transformers",
) -> str:
    """Front matter and text in the Hub's form; `library` reads what the card is of."""
    front: dict[str, Any] = {"license": model.licence, "library_name": library}
    if base.startswith("hub:"):
        front["base_model"] = base.removeprefix("hub:")
    front["tags"] = ["musicrl", "music"]
    told = (
        f"The decoder was finetuned from `{base}`, whose licence ({model.licence}) holds for it too; "
        "text encoder and codec are unchanged. Made with musicrl, after MusicRL (Cideron et al., "
        "ICML 2024)."
    )
    title = "# MusicGen finetuned by reinforcement learning"
    training = _training(summary) if summary else ["No run is recorded."]
    head = f"---\n{yaml.safe_dump(front, sort_keys=False)}---"
    return "\n\n".join([head, title, told, *_settings(settings or {}, raters), *training]) + "\n"


def _settings(settings: Mapping[str, Any], raters: str | None) -> list[str]:
    """Rewards, data and the weight of the divergence; of a world its folder's name alone."""
    if not settings:
        return []
    weights, world = settings["reward"]["weights"], settings["model"]["weights"]
    rewards = ", ".join(f"{name} ({weight:g})" for name, weight in weights.items())
    data = "the shipped tiny world" if world is None else f"the world `{Path(world).name}`"
    lines = (
        f"- Rewards and their weights: {rewards}",
        *(() if raters is None else (f"- The preference model learned from raters: {raters}",)),
        f"- Data: training prompts of {data}",
        f"- Weight of the KL to the base: {settings['algorithm']['alpha']:g}",
    )
    return ["\n".join(lines)]


def _training(summary: Mapping[str, Any]) -> list[str]:
    """What a run's summary says of updates, divergence and evaluation."""
    updates, seed = summary["iterations"], summary["seed"]
    kl = summary["last_step"].get("kl/sequence")
    told = [f"Updates: {updates}, seed {seed}{'' if kl is None else f', KL {kl:.2f} nats a clip'}."]
    evaluation = summary["evaluation"]
    if evaluation is None:
        return [*told, "The run was not evaluated."]
    rows = [
        f"| {name} | {figure['mean']:.3f} | {evaluation['after'][name]['mean']:.3f} |"
        for name, figure in evaluation["before"].items()
        if figure["mean"] is not None and evaluation["after"][name]["mean"] is not None
    ]
    return [*told, "\n".join(["| figure | before | after |", "|---|---|---|", *rows])]


def _in_float32(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration, its parts' too, of weights in float32."""
    return {
        name: "float32"
        if name in DTYPES
        else _in_float32(value)
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }


def _left_out(_: str, names: list[str]) -> set[str]:
    """Weights, which are written anew, and the base's own card."""
    weights = {name for name in names if name.endswith((".safetensors", ".bin"))}
    return weights | ({CARD, INDEX} & set(names))
