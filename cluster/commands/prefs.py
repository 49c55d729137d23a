"""`musicrl prefs NAME`: files of preferences, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.closest import closest

EXTRA = ("fastapi", "uvicorn", "sqlalchemy", "itsdangerous")


def prefs(args: Sequence[str]) -> None:
    """Run one of the jobs."""
    words, flags = split_words(args)
    if not words:
        print("usage: musicrl prefs NAME [file ...] [--field value]\n")
        for name, (_, summary) in JOBS.items():
            print(f"  {name:<10}{summary}")
        return
    name, *files = words
    if name not in JOBS:
        raise ValueError(f"unknown job {name!r}{closest(name, list(JOBS))}")
    JOBS[name][0]([Path(file) for file in files], flags)


def _export(files: Sequence[Path], flags: Sequence[str]) -> None:
    require_extra()
    from musicrl.preference.export import ExportConfig, export

    if wants_help(flags):
        return print_help(ExportConfig(), verb="prefs export")
    _refuse_files("export", files)
    config = read_settings(ExportConfig, flags)
    count = export(config)
    if config.since is not None and not count:
        return print(f"no new {config.what} after {config.since}")
    place = config.file if config.since is None else f"a new part beside {config.since}"
    print(f"{count} {config.what} in {place}")


def _validate(files: Sequence[Path], flags: Sequence[str]) -> None:
    from musicrl.preference.validate import ValidateConfig, validate

    if wants_help(flags):
        return print_help(ValidateConfig(), verb="prefs validate file.parquet ...")
    config = read_settings(ValidateConfig, flags)
    validate(replace(config, files=_wanted("validate", (*files, *config.files))))


def _merge(files: Sequence[Path], flags: Sequence[str]) -> None:
    from musicrl.preference.combine import MergeConfig, merge

    if wants_help(flags):
        return print_help(MergeConfig(), verb="prefs merge file.parquet ...")
    config = read_settings(MergeConfig, flags)
    config = replace(config, files=_wanted("merge", (*files, *config.files)))
    rows, dropped = merge(config)
    print(f"{rows} comparisons in {config.out}; {dropped} came again and were left out")


def _split(files: Sequence[Path], flags: Sequence[str]) -> None:
    from musicrl.preference.combine import SplitConfig, split

    if wants_help(flags):
        return print_help(SplitConfig(), verb="prefs split file.parquet ...")
    config = read_settings(SplitConfig, flags)
    config = replace(config, files=_wanted("split", (*files, *config.files)))
    for side, rows in split(config).items():
        print(f"{rows} comparisons in {config.file(side)}")


def _pool(files: Sequence[Path], flags: Sequence[str]) -> None:
    from musicrl.preference.pool import PoolConfig, write_pool

    if wants_help(flags):
        return print_help(PoolConfig(), verb="prefs pool")
    _refuse_files("pool", files)
    config = read_settings(PoolConfig, flags)
    print(f"{write_pool(config)} clips in {config.out}")


def _simulate(files: Sequence[Path], flags: Sequence[str]) -> None:
    from musicrl.preference.simulate import SimulateConfig, simulate

    if wants_help(flags):
        return print_help(SimulateConfig(), verb="prefs simulate [file.yaml]")
    if len(files) > 1:
        raise ValueError(f"musicrl prefs simulate takes one file, got {' '.join(map(str, files))}")
    simulate(read_settings(SimulateConfig, flags, files[0] if files else None))


def _winrate(files: Sequence[Path], flags: Sequence[str]) -> None:
    from musicrl.preference.winrate import WinRateConfig, compare_policies

    if wants_help(flags):
        return print_help(WinRateConfig(), verb="prefs winrate ratings.parquet ...")
    config = read_settings(WinRateConfig, flags)
    files = _wanted("winrate", (*files, *config.files))
    compare_policies(replace(config, files=files))


def require_extra() -> None:
    """Raise ModuleNotFoundError, saying what to install, when the extra `collect` is missing."""
    for name in EXTRA:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"this needs {name}: install the extra with pip install 'musicrl[collect]'"
            )


def _wanted(name: str, files: tuple[Path, ...]) -> tuple[Path, ...]:
    if not files:
        raise ValueError(f"prefs {name} needs files, as in: musicrl prefs {name} a.parquet")
    return files


def _refuse_files(name: str, files: Sequence[Path]) -> None:
    if files:
        raise ValueError(f"musicrl prefs {name} takes no files, got {' '.join(map(str, files))}")


JOBS: Mapping[str, tuple[Callable[[Sequence[Path], Sequence[str]], None], str]] = MappingProxyType(
    {
        "export": (_export, "answers of a database to a Parquet file"),
        "merge": (_merge, "put Parquet files together: file.parquet ..."),
        "split": (_split, "cut Parquet files in two, by whole prompts or raters: file.parquet ..."),
        "pool": (_pool, "sample clips into a folder, to be heard or judged"),
        "simulate": (_simulate, "comparisons of clips by simulated raters: [file.yaml]"),
        "winrate": (_winrate, "which policy's clips were marked higher: ratings.parquet ..."),
        "validate": (_validate, "check Parquet files and count what they hold: file.parquet ..."),
    }
)
