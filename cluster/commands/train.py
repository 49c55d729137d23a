"""`musicrl train`, `musicrl solo` and `musicrl config`: the verbs that read a run's settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cluster.commands.flags import print_help, split_words, wants_help
from musicrl.config import DEFAULT_PRESET, TrainConfig, derived_numbers, dump_yaml, load_config
from musicrl.worlds import load_world


def train(args: Sequence[str]) -> None:
    """Train on Ray: a local cluster, or the one that RAY_ADDRESS names."""
    config = run_config(args, verb="train")
    if config is not None:
        from cluster.session import train as train_on_ray

        announce(config)
        report(config, train_on_ray(config))


def train_alone(args: Sequence[str]) -> None:
    """Train in this process."""
    config = run_config(args, verb="solo")
    if config is not None:
        from musicrl.solo import solo

        announce(config)
        report(config, solo(config))


def print_config(args: Sequence[str]) -> None:
    """Print the resolved settings; `musicrl train` reads them back from a file."""
    config = run_config(args, verb="config")
    if config is not None:
        print(dump_yaml(config), end="")


def run_config(args: Sequence[str], *, verb: str) -> TrainConfig | None:
    """The settings that `args` ask for; None when they asked for help, which is then printed."""
    words, flags = split_words([word for word in args if word not in ("-h", "--help")])
    if len(words) > 1:
        raise ValueError(f"musicrl {verb} takes one preset or file, got {' '.join(words)}")
    config = load_config(words[0] if words else DEFAULT_PRESET, flags)
    if wants_help(args):
        print_help(config, verb=verb)
        return None
    return config


def announce(config: TrainConfig) -> None:
    """Print what the settings amount to. Raises FileNotFoundError or ValueError when a model is
    missing or damaged."""
    world = load_world(config.model.weights, config.model.policy)
    policy = world.policy
    cells = world.steps_of(config.rollout.clip_seconds) * policy.layout.num_streams
    for name, number in derived_numbers(config, cells_per_sample=cells).items():
        print(f"{name:<28}{number:>10,}")
    print(f"{'policy parameters':<28}{sum(map(_size, policy.parameters())):>10,}", flush=True)


def report(config: TrainConfig, summary: dict[str, Any]) -> None:
    """Print where everything is, and the reward before and after when it was measured."""
    evaluation = summary.get("evaluation")
    if evaluation:
        for name, change in evaluation["difference"].items():
            before, after = evaluation["before"][name]["mean"], evaluation["after"][name]["mean"]
            print(_change(name, before, after, change["mean"], change["standard_error"]))
    print(f"summary      {config.out / 'summary.json'}")
    print(f"before/after {config.out / 'audio'}")
    print(f"TensorBoard  tensorboard --logdir {config.out}")


def _size(parameter: Any) -> int:
    return math.prod(parameter.shape)


def _change(name: str, before: Any, after: Any, mean: Any, error: Any) -> str:
    cells = ("-" if x is None else f"{x:.3f}" for x in (before, after, mean, error))
    return "{:<28}{:>8} -> {:>8}   change {:>7} ± {}".format(name, *cells)
