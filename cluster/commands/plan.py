"""`musicrl plan`: reads its settings and the preset of the run that is planned for."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.commands.flags import print_help, split_words, wants_help
from cluster.plan_config import PlanConfig
from cluster.session import prepare_environment
from musicrl.config import DEFAULT_PRESET, load_config
from musicrl.settings import build, merge, read_flags, to_tree


def plan(args: Sequence[str]) -> None:
    """Forecast a run on clusters of several sizes."""
    words, flags = split_words([word for word in args if word not in ("-h", "--help")])
    if len(words) > 1:
        raise ValueError(f"musicrl plan takes one preset or file, got {' '.join(words)}")
    train = load_config(words[0] if words else DEFAULT_PRESET)
    prepare_environment(train.cluster)
    from cluster import planning

    config = PlanConfig(train=train)
    if wants_help(args):
        return print_help(config, verb="plan")
    if flags:
        tree = merge(to_tree(config), read_flags(PlanConfig, flags))
        config = build(PlanConfig, tree, origin="command line")
    planning.plan(config)
