"""`musicrl bench`: the project's own measurements of speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from cluster.session import prepare_environment
from musicrl.closest import closest


def bench(args: Sequence[str]) -> None:
    """Run a measurement and print its table."""
    words, flags = split_words(args)
    if not words:
        print(
            "usage: musicrl bench NAME [file.yaml] [--field value]\n"
            f"measurements: {', '.join(BENCHES)}"
        )
        return
    name, *files = words
    if name not in BENCHES:
        raise ValueError(f"unknown measurement {name!r}{closest(name, tuple(BENCHES))}")
    if len(files) > 1:
        raise ValueError(f"musicrl bench {name} takes one file, got {' '.join(files)}")
    run = BENCHES[name]
    run(flags, Path(files[0]) if files else None, has_help=wants_help(args))


def bench_lag(flags: Sequence[str], file: Path | None, *, has_help: bool) -> None:
    from musicrl.config import ClusterConfig

    prepare_environment(ClusterConfig())
    from cluster import lag_bench

    if has_help:
        return print_help(lag_bench.LagBenchConfig(), verb="bench lag")
    lag_bench.bench_lag(read_settings(lag_bench.LagBenchConfig, flags, file))


def bench_sampler(flags: Sequence[str], file: Path | None, *, has_help: bool) -> None:
    from cluster import sampler_bench

    if has_help:
        return print_help(sampler_bench.SamplerBenchConfig(), verb="bench sampler")
    sampler_bench.bench_sampler(read_settings(sampler_bench.SamplerBenchConfig, flags, file))


def bench_iteration(flags: Sequence[str], file: Path | None, *, has_help: bool) -> None:
    from cluster import iteration_bench

    if has_help:
        return print_help(iteration_bench.IterationBenchConfig(), verb="bench iteration")
    settings = read_settings(iteration_bench.IterationBenchConfig, flags, file)
    iteration_bench.bench_iteration(settings)


def bench_controller(flags: Sequence[str], file: Path | None, *, has_help: bool) -> None:
    from cluster import controller_bench

    if has_help:
        return print_help(controller_bench.ControllerBenchConfig(), verb="bench controller")
    settings = read_settings(controller_bench.ControllerBenchConfig, flags, file)
    controller_bench.bench_controller(settings)


def bench_chaos(flags: Sequence[str], file: Path | None, *, has_help: bool) -> None:
    from musicrl.config import ClusterConfig

    prepare_environment(ClusterConfig())
    from cluster import chaos

    if has_help:
        return print_help(chaos.ChaosConfig(), verb="bench chaos")
    chaos.bench_chaos(read_settings(chaos.ChaosConfig, flags, file))


def bench_weights(flags: Sequence[str], file: Path | None, *, has_help: bool) -> None:
    from musicrl.config import ClusterConfig

    prepare_environment(ClusterConfig())
    from cluster import weights_bench

    if has_help:
        return print_help(weights_bench.WeightsBenchConfig(), verb="bench weights")
    weights_bench.bench_weights(read_settings(weights_bench.WeightsBenchConfig, flags, file))


BENCHES = {
    "chaos": bench_chaos,
    "controller": bench_controller,
    "lag": bench_lag,
    "sampler": bench_sampler,
    "iteration": bench_iteration,
    "weights": bench_weights,
}
"""Measurements by name."""
