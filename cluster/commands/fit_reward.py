"""`musicrl fit-reward`: a preference model from files of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.preference.fit import FitConfig, fit


def fit_reward(args: Sequence[str]) -> None:
    """Train the model and print what it is worth."""
    if wants_help(args):
        return print_help(FitConfig(), verb="fit-reward file.parquet ...")
    words, flags = split_words(args)
    config = read_settings(FitConfig, flags)
    files = (*map(Path, words), *config.files)
    if not files and config.cursor is None:
        raise ValueError("fit-reward needs files, as in: musicrl fit-reward preferences.parquet")
    fit(replace(config, files=files))
