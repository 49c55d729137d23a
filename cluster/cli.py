"""The command line: `musicrl VERB [preset or file.yaml] [--field value]`.

Finds the verb and turns every fault of the user into one sentence and a non-zero exit; set
MUSICRL_TRACEBACK=1 to see where it came from. What a verb does stands in `cluster/commands`; torch
and Ray are loaded only by the verbs that need them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from musicrl import __version__
from musicrl.closest import closest

EXIT_FAULT, EXIT_INTERRUPT = 1, 130


def _train(args: Sequence[str]) -> None:
    from cluster.commands.train import train

    train(args)


def _submit(args: Sequence[str]) -> None:
    from cluster.commands.submit import submit

    submit(args)


def _solo(args: Sequence[str]) -> None:
    from cluster.commands.train import train_alone

    train_alone(args)


def _sample(args: Sequence[str]) -> None:
    from cluster.commands.sample import sample

    sample(args)


def _score(args: Sequence[str]) -> None:
    from cluster.commands.score import score

    score(args)


def _evaluate(args: Sequence[str]) -> None:
    from cluster.commands.evaluate import evaluate

    evaluate(args)


def _codec(args: Sequence[str]) -> None:
    from cluster.commands.codec import codec

    codec(args)


def _reproduce(args: Sequence[str]) -> None:
    from cluster.commands.reproduce import reproduce

    reproduce(args)


def _spread(args: Sequence[str]) -> None:
    from cluster.commands.evaluate import spread

    spread(args)


def _curves(args: Sequence[str]) -> None:
    from cluster.commands.evaluate import curves

    curves(args)


def _listen(args: Sequence[str]) -> None:
    from cluster.commands.listen import listen

    listen(args)


def _pretrain(args: Sequence[str]) -> None:
    from cluster.commands.pretrain import pretrain

    pretrain(args)


def _bench(args: Sequence[str]) -> None:
    from cluster.commands.bench import bench

    bench(args)


def _collect(args: Sequence[str]) -> None:
    from cluster.commands.collect import collect

    collect(args)


def _prefs(args: Sequence[str]) -> None:
    from cluster.commands.prefs import prefs

    prefs(args)


def _fit_reward(args: Sequence[str]) -> None:
    from cluster.commands.fit_reward import fit_reward

    fit_reward(args)


def _export(args: Sequence[str]) -> None:
    from cluster.commands.export import export

    export(args)


def _plan(args: Sequence[str]) -> None:
    from cluster.commands.plan import plan

    plan(args)


def _config(args: Sequence[str]) -> None:
    from cluster.commands.train import print_config

    print_config(args)


VERBS: Mapping[str, tuple[Callable[[Sequence[str]], None], str]] = MappingProxyType(
    {
        "train": (_train, "train on Ray: [preset or file.yaml] [--field value]"),
        "submit": (_submit, "run a verb as a job of a Ray cluster: [--field value] -- VERB ..."),
        "solo": (_solo, "train in this one process, without Ray"),
        "sample": (_sample, 'make wav files: "text" ... [--out DIR] [--count N]'),
        "score": (_score, 'score audio files against a text: "text" file.wav ...'),
        "evaluate": (_evaluate, "measure policies on the held-out prompts: [policy or run ...]"),
        "codec": (_codec, "measure what the codec keeps: [soundfont or folder of clips ...]"),
        "reproduce": (_reproduce, "train R, U and RU from the base and compare all: [file.yaml]"),
        "spread": (_spread, "put finished runs beside each other: runs/a runs/b ..."),
        "curves": (_curves, "put the training of runs beside each other: runs/a runs/b ..."),
        "listen": (_listen, "make a page of clips to hear: [policy or run ...] [--field value]"),
        "pretrain": (_pretrain, "build a world, or one stage of it: [STAGE] [file.yaml]"),
        "collect": (_collect, "serve the page on which people compare clips: [--field value]"),
        "prefs": (_prefs, "preferences: export, validate, merge, split, pool or simulate"),
        "fit-reward": (_fit_reward, "learn a preference model: file.parquet ... [--field value]"),
        "export": (_export, "write a finetuned MusicGen for transformers: path:DIR --policy FILE"),
        "plan": (_plan, "forecast a run on clusters of several sizes: [preset] [--field value]"),
        "bench": (_bench, "measure speed: lag, sampler or iteration [file.yaml] [--field value]"),
        "config": (_config, "print the resolved configuration as YAML"),
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (none: this process's); the exit code."""
    try:
        dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("musicrl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except (ValueError, OSError, ModuleNotFoundError) as fault:
        if os.environ.get("MUSICRL_TRACEBACK"):
            raise
        print(f"musicrl: {' '.join(str(fault).split())}", file=sys.stderr)
        return EXIT_FAULT
    return 0


def dispatch(args: Sequence[str]) -> None:
    """Run the verb that `args` opens with. Raises ValueError for a verb that does not exist."""
    verb, *rest = args or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
    elif verb == "--version":
        print(__version__)
    elif verb in VERBS:
        VERBS[verb][0](rest)
    else:
        raise ValueError(f"unknown verb {verb!r}{closest(verb, list(VERBS))}")


def usage() -> str:
    lines = (f"  {name:<11}{summary}" for name, (_, summary) in VERBS.items())
    return "\n".join(
        [
            f"musicrl {__version__}: text-to-music models that get better by reinforcement learning",
            "",
            "usage: musicrl VERB ...      (musicrl VERB --help lists every field)",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
