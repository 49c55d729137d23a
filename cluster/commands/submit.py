"""`musicrl submit`: any verb of this command line, run as a job of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from cluster.submit import SubmitConfig
from cluster.submit import submit as submit_job
from musicrl.closest import closest

EXAMPLE = "as in: musicrl submit --address http://127.0.0.1:8265 -- train tiny --seed 1"


def submit(args: Sequence[str]) -> None:
    """Submit what follows `--`. Raises SystemExit with the job's exit code unless that is 0."""
    own, rest = split_at_dashes(args)
    words, flags = split_words(own)
    if wants_help(own):
        return print_help(SubmitConfig(), verb="submit")
    if words:
        raise ValueError(f"submit takes a verb after --, {EXAMPLE}")
    config = read_settings(SubmitConfig, flags)
    check_verb(rest)
    if code := submit_job(config, rest):
        raise SystemExit(code)


def split_at_dashes(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--` and what stands after it."""
    here = list(args).index("--") if "--" in args else len(args)
    return list(args[:here]), list(args[here + 1 :])


def check_verb(args: Sequence[str]) -> None:
    """Raise ValueError for a verb that the job would not know, before anything is sent."""
    from cluster.cli import VERBS

    if not args:
        raise ValueError(f"submit takes a verb after --, {EXAMPLE}")
    if args[0] not in VERBS or args[0] == "submit":
        raise ValueError(f"submit: unknown verb {args[0]!r}{closest(args[0], list(VERBS))}")
