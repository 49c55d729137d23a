"""`musicrl bench chaos`: runs that are killed at random, and what is left of them in the end.

    a cluster of a head and some nodes, and a run on it in a process of its own
         ▲ SIGKILL to a sampler, a scorer, a learner, a node or the driver, at random times
         └ once the run trains on: how long that took; a dead driver is started with --resume,
           a dead node is replaced

A run that went through this must end, with every step trained on all of its samples and on no other
(the archive of rollouts tells); at max_lag 0 its weights must be those of a run that nobody touched,
bit for bit. Processes are found in /proc.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.chaos_run import POLL_SECONDS, Account, ChaosRun, weights_digest
from cluster.chaos_site import Site
from musicrl.config import (
    ClusterConfig,
    EvaluationConfig,
    RolloutConfig,
    TrainConfig,
    load_config,
)
from musicrl.textfile import write_text

TARGETS = ("sampler", "scorer", "learner", "node", "driver")
PATIENCE_SECONDS = 180.0
"""Without progress for so long after a kill, a run counts as stuck."""


def _small() -> TrainConfig:
    """Updates of about a second, each kept."""
    tiny = load_config("tiny")
    return replace(
        tiny,
        iterations=30,
        checkpoint_every=1,
        archive_rollouts=True,
        rollout=RolloutConfig(
            prompts_per_step=4, samples_per_prompt=2, prompts_per_chunk=1, clip_seconds=0.48
        ),
        cluster=ClusterConfig(
            num_samplers=2,
            num_scorers=2,
            learner_threads=1,
            placement="spread",
            task_timeout_seconds=120,
        ),
        evaluation=EvaluationConfig(prompts=2, audio_prompts=1),
    )


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """Kill processes of runs at random, and see whether the runs survive."""

    kills: int = 20
    """In all; runs follow each other until there were so many."""
    targets: tuple[str, ...] = TARGETS
    """What is killed, each as often."""
    lags: tuple[int, ...] = (0, 1)
    """Values of max_lag, of one run after another."""
    nodes: int = 2
    """Besides the head, which runs no actor."""
    mean_seconds: float = 3.0
    """Between a recovery and the next kill (exponential)."""
    seed: int = 0
    train: TrainConfig = field(default_factory=_small)
    """What is trained; `checkpoint_every` must be 1 and `archive_rollouts` set: they show progress and
    samples."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in TARGETS:
                raise ValueError(f"targets: {target!r} is none of {', '.join(TARGETS)}")
        if not self.targets or not self.lags or min(self.lags) < 0:
            raise ValueError("targets and lags must name something, and lags be 0 or more")
        if self.kills < 1 or self.nodes < 1 or not self.mean_seconds > 0:
            raise ValueError("kills, nodes and mean_seconds must be above 0")
        if self.train.checkpoint_every != 1:
            raise ValueError(
                f"train.checkpoint_every must be 1, got {self.train.checkpoint_every}: progress is "
                "seen by checkpoints"
            )
        if not self.train.archive_rollouts:
            raise ValueError("train.archive_rollouts must be set: samples are counted by it")

    def run_at(self, lag: int, out: Path) -> TrainConfig:
        cluster = replace(self.train.cluster, max_lag=lag)
        return replace(self.train, cluster=cluster, out=out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A process that was killed, and the run's answer."""

    run: int
    target: str
    version: int
    """That the run had reached."""
    recovery_seconds: float | None
    """Until the next version was kept; None where the run did not get there in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run after all that was done to it."""

    run: int
    max_lag: int
    kills: int
    finished: bool
    account: Account | None
    """Of its samples; None where it did not finish."""
    is_equal: bool | None
    """Whether its weights are those of the undisturbed run (None: with lag they need not be)."""
    complaint: str = ""
    """What the driver said last where it gave up."""


def bench_chaos(config: ChaosConfig, console: Console | None = None) -> dict[str, Any]:
    """Kill, print a table and write the JSON file if asked; what it holds."""
    console = console or Console()
    with TemporaryDirectory() as folder, Site(config.nodes, threads_of(config.train)) as site:
        monkey = Monkey(config, site, Path(folder), console.print)
        monkey.run()
    report = to_report(config, monkey)
    console.print(kills_table(report))
    console.print(runs_table(report))
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def threads_of(train: TrainConfig) -> int:
    """CPU slots of a node: with one node gone, the others hold all actors."""
    cluster = train.cluster
    return (
        cluster.num_samplers * cluster.sampler_threads
        + cluster.num_scorers * cluster.scorer_threads
        + cluster.num_learners * cluster.learner_threads
    )


class Monkey:
    """Runs and kills, one after the other."""

    def __init__(
        self, config: ChaosConfig, site: Site, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.config, self.site, self.folder, self.say = config, site, folder, say
        self.random = random.Random(config.seed)
        self.kills: list[Kill] = []
        self.outcomes: list[Outcome] = []

    def run(self) -> None:
        """An undisturbed run, then killed ones until there were enough kills.

        Raises ValueError where a run fails undisturbed, or is too short to be disturbed.
        """
        undisturbed = self.start(0, self.folder / "undisturbed")
        undisturbed.wait()
        if not undisturbed.has_finished:
            raise ValueError(f"a run that nobody disturbed fails: {undisturbed.last_words}")
        reference = weights_digest(undisturbed.config.out)
        while len(self.kills) < self.config.kills:
            number = len(self.outcomes)
            lag = self.config.lags[number % len(self.config.lags)]
            run = self.start(lag, self.folder / f"run{number}")
            before = len(self.kills)
            self.torment(run, number)
            kills = len(self.kills) - before
            self.outcomes.append(self.judge(run, number, lag, kills, reference))
            if not kills:
                raise ValueError(f"run {number} ended before its first kill: {run.last_words}")

    def start(self, lag: int, out: Path) -> ChaosRun:
        run = ChaosRun(self.config.run_at(lag, out), self.site.address)
        run.start()
        return run

    def torment(self, run: ChaosRun, number: int) -> None:
        """Kill until the run is over or there were enough kills; then let it end."""
        run.wait_for(1, PATIENCE_SECONDS)
        while run.is_alive and len(self.kills) < self.config.kills:
            time.sleep(self.random.expovariate(1 / self.config.mean_seconds))
            target, version = self.pick(run), run.version
            if target is None:
                break
            recovered = run.wait_for(version + 1, PATIENCE_SECONDS, restart=target == "driver")
            kill = Kill(run=number, target=target, version=version, recovery_seconds=recovered)
            self.kills.append(kill)
            self.say(
                f"kill {len(self.kills)}: {target} of run {number} at version {version}: "
                + ("STUCK" if recovered is None else f"{recovered:.1f} s")
            )
            if recovered is None:
                return run.kill()
        run.wait()

    def pick(self, run: ChaosRun) -> str | None:
        """Kill something; what it was, or None when the run ended meanwhile."""
        while run.is_alive and run.version < self.config.train.iterations - 1:
            target = self.random.choice(self.config.targets)
            if self.hit(run, target):
                return target
            time.sleep(POLL_SECONDS)
        return None

    def hit(self, run: ChaosRun, target: str) -> bool:
        """Kill one of a kind; False where there is none, since it is starting again."""
        if target == "driver":
            run.kill()
        elif target == "node":
            self.site.replace_node(self.random)
        else:
            pids = self.site.find(target)
            if not pids:
                return False
            os.kill(self.random.choice(pids), signal.SIGKILL)
        return True

    def judge(self, run: ChaosRun, number: int, lag: int, kills: int, reference: str) -> Outcome:
        is_equal = weights_digest(run.config.out) == reference if run.has_finished else False
        return Outcome(
            run=number,
            max_lag=lag,
            kills=kills,
            finished=run.has_finished,
            account=run.account() if run.has_finished else None,
            is_equal=is_equal if lag == 0 else None,
            complaint="" if run.has_finished else run.last_words,
        )


def to_report(config: ChaosConfig, monkey: Monkey) -> dict[str, Any]:
    """Figures of kills by target, and of runs."""
    targets = {}
    for target in config.targets:
        mine = [kill for kill in monkey.kills if kill.target == target]
        times = [k.recovery_seconds for k in mine if k.recovery_seconds is not None]
        targets[target] = {
            "kills": len(mine),
            "recovered": len(times),
            "mean_seconds": fmean(times) if times else None,
            "max_seconds": max(times, default=None),
        }
    everything = [k.recovery_seconds for k in monkey.kills if k.recovery_seconds is not None]
    return {
        "kills": len(monkey.kills),
        "mean_recovery_seconds": fmean(everything) if everything else None,
        "targets": targets,
        "runs": [_to_json(outcome) for outcome in monkey.outcomes],
    }


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "run": outcome.run,
        "max_lag": outcome.max_lag,
        "kills": outcome.kills,
        "finished": outcome.finished,
        "account": None if outcome.account is None else asdict(outcome.account),
        "equal": outcome.is_equal,
        "complaint": outcome.complaint,
    }


def kills_table(report: dict[str, Any]) -> Table:
    table = Table("killed", title="recovery, from the kill to the next version that is kept")
    for column in ("times", "recovered", "mean s", "max s"):
        table.add_column(column, justify="right")
    for target, found in report["targets"].items():
        seconds = (found["mean_seconds"], found["max_seconds"])
        cells = ("-" if s is None else f"{s:.1f}" for s in seconds)
        table.add_row(target, str(found["kills"]), str(found["recovered"]), *cells)
    return table


def runs_table(report: dict[str, Any]) -> Table:
    table = Table("run", title="runs")
    columns = (
        "max_lag",
        "kills",
        "finished",
        "samples",
        "lost",
        "twice",
        "too old",
        "as undisturbed",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for run in report["runs"]:
        account = run["account"] or dict.fromkeys(("samples", "lost", "duplicated", "too_old"), "-")
        cells = (run["run"], run["max_lag"], run["kills"], _mark(run["finished"]))
        table.add_row(*map(str, (*cells, *account.values(), _mark(run["equal"]))))
    return table


def _mark(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[value]
