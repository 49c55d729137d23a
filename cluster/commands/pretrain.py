"""`musicrl pretrain [STAGE]`: all stages of building a world, or one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from cluster.pretrain_config import PretrainConfig
from cluster.pretraining import build
from musicrl.closest import closest
from musicrl.pretrain import DISTRIBUTED, STAGES
from musicrl.pretrain.distributed import num_processes
from musicrl.settings import build as build_settings
from musicrl.settings import merge, read_flags, read_yaml, to_tree


def pretrain(args: Sequence[str]) -> None:
    """Run every stage that is not finished, or the one that is named, and print the figures."""
    args = ["--help" if word == "-h" else word for word in args]
    words, flags = split_words(args)
    is_whole = not words or words[0].endswith((".yaml", ".yml"))
    if num_processes() > 1 and (is_whole or words[0] not in DISTRIBUTED):
        raise ValueError(f"several processes build one stage, of {', '.join(DISTRIBUTED)}")
    if wants_help(args) and is_whole:
        print(f"musicrl pretrain [file.yaml] runs every stage; musicrl pretrain STAGE one: {LIST}")
        return print_help(PretrainConfig(), verb="pretrain")
    if is_whole:
        build(read_whole(flags, _only_file(words, "pretrain")))
    else:
        _run_one(words[0], words[1:], flags)


def read_whole(flags: Sequence[str], file: Path | None) -> PretrainConfig:
    """The settings of all stages: those of the preset, a YAML file over them, flags over both.

    What a file says of a stage is put over the preset's settings of it, not over its own defaults:
    `policy_noisy` stays noisy.
    """
    tree = to_tree(PretrainConfig())
    if file is not None:
        tree = merge(tree, read_yaml(file))
        build_settings(PretrainConfig, tree, origin=str(file))
    tree = merge(tree, read_flags(PretrainConfig, flags))
    return build_settings(PretrainConfig, tree, origin="command line")


def _run_one(stage: str, files: Sequence[str], flags: Sequence[str]) -> None:
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}{closest(stage, list(STAGES))}")
    schema, run = STAGES[stage]
    if wants_help(flags):
        return print_help(schema(), verb=f"pretrain {stage}")
    config = read_settings(schema, flags, _only_file(files, f"pretrain {stage}"))
    for name, value in run(config).items():
        print(f"{name:<32}{value:.4g}")


def _only_file(files: Sequence[str], verb: str) -> Path | None:
    if len(files) > 1:
        raise ValueError(f"musicrl {verb} takes one file, got {' '.join(files)}")
    return Path(files[0]) if files else None


LIST = ", ".join(STAGES)
