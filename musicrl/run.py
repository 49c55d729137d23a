"""The folder of a run, shared by `solo` and the cluster: what is written where, and how.

    <out>/config.yaml            the resolved configuration
    <out>/checkpoints/step_N/    policy.safetensors, learner.safetensors, state.json
    <out>/audio/{before,after}/  wavs of the fixed prompts
    <out>/checkpoints/best.json  the checkpoint to end with, where guards.restore_best asks for one
    <out>/policy.safetensors     the policy of that checkpoint
    <out>/summary.json           the figures of the run
    <out>/.lock                  while a process works in it (lock.py)

Everything appears whole or not at all. It knows nothing of training or of processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from musicrl import __version__
from musicrl.checkpoint_folder import (
    checkpoint_fault,
    read_state,
    write_checkpoint,
)
from musicrl.config import TrainConfig, dump_yaml
from musicrl.evaluation.heldout import EvaluationChunk, evaluation_chunks
from musicrl.lock import held
from musicrl.mirror import STEP, Mirror
from musicrl.prompts import load_prompts
from musicrl.textfile import write_text
from musicrl.types import Prompt
from musicrl.worlds import prompts_of_world

KEPT_CHECKPOINTS = 2
POLICY = "policy.safetensors"
BEST = "best.json"
PACKAGES = ("torch", "ray", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The checkpoint whose evaluation gave the best held-out reward."""

    step: int
    reward: float
    """Mean held-out reward."""


class Run:
    """One run's folder."""

    def __init__(self, folder: Path, *, first_step: int = 0, mirror: Mirror | None = None) -> None:
        """`first_step` training steps were done before this process began; checkpoints are copied to
        `mirror`, and from there where this folder lacks them."""
        self.folder = folder
        self.first_step = first_step
        self.mirror = mirror

    @classmethod
    def of(cls, config: TrainConfig) -> Run:
        """The folder and the mirror that a run is configured to have."""
        url = config.checkpoint_url
        return cls(config.out, mirror=None if url is None else Mirror(url))

    @classmethod
    @contextmanager
    def start(cls, config: TrainConfig) -> Iterator[Run]:
        """The folder `config.out`, with its config.yaml, kept from other processes meanwhile.

        Raises what `find` and `held` raise.
        """
        cls.find(config)
        with held(config.out):
            run = cls.find(config)  # another process may have ended in between
            write_text(run.folder / "config.yaml", dump_yaml(config))
            yield run

    @classmethod
    def find(cls, config: TrainConfig) -> Run:
        """The run of `config.out`, of which nothing is made yet.

        Raises ValueError when it already holds a run that is not to be resumed, FileNotFoundError
        when there is nothing to resume. A run that a guard stopped goes on only when that guard
        is to stop it no longer.
        """
        run = cls.of(config)
        if config.resume:
            run.check_guards(config)
            run.first_step = int(read_state(run.newest_checkpoint())["step"])
        elif run.summary_path.exists() or any(run.checkpoint_folders()):
            raise ValueError(
                f"{config.out} already holds a run: continue it with --resume, "
                "or choose another folder with --out"
            )
        return run

    def check_guards(self, config: TrainConfig) -> None:
        """Raise ValueError when a guard that still stops has ended this run."""
        if not self.summary_path.exists():
            return
        alarm = json.loads(self.summary_path.read_text(encoding="utf-8")).get("stopped_by")
        if alarm is not None and alarm["guard"] in config.guards.stop:
            raise ValueError(
                f"{self.folder} was stopped by guards.{alarm['guard']} after step "
                f"{alarm['step']}: it goes on only when guards.stop does not name that guard"
            )

    @property
    def summary_path(self) -> Path:
        return self.folder / "summary.json"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    def checkpoint_folders(self) -> list[Path]:
        """Checkpoints by step, oldest first, whole or not."""
        return sorted(p for p in self.checkpoints.glob("step_*") if STEP.fullmatch(p.name))

    def save_checkpoint(
        self, step: int, state: Mapping[str, Any], write: Callable[[Path], None]
    ) -> Path:
        """Checkpoint of the run after `step` training steps: what `write` puts into the folder it
        is given, and `state`. Older ones are deleted but for the newest two and the best."""
        target = self.checkpoint_folder(step)
        if checkpoint_fault(target) is not None:
            write_checkpoint(target, {**state, "step": step}, write)
        if self.mirror is not None:
            self.mirror.push(target)
        self._prune()
        return target

    def _prune(self) -> None:
        """Keep the newest two and the best."""
        best, folders = self.find_best(), self.checkpoint_folders()
        kept = {
            *folders[-KEPT_CHECKPOINTS:],
            *([self.checkpoint_folder(best.step)] if best else []),
        }
        for old in set(folders) - kept:
            shutil.rmtree(old)
        if self.mirror is not None:
            self.mirror.keep([folder.name for folder in kept])

    def fetch(self) -> None:
        """Copy here what the mirror has and this folder lacks; raises ValueError when all of it is
        damaged."""
        if self.mirror is None:
            return
        faults = []
        for name in self.mirror.names():
            if checkpoint_fault(self.checkpoints / name) is not None:
                try:
                    self.mirror.pull(name, self.checkpoints)
                except ValueError as fault:  # an older one may do
                    faults.append(fault)
        if faults and not self.checkpoint_folders():
            raise faults[-1]
        if not (self.checkpoints / BEST).exists():
            self.mirror.pull_file(self.checkpoints / BEST)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def checkpoint_folder(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def keep_best(self, best: Best) -> None:
        """Keep a checkpoint that is on disk, in place of the best so far."""
        assert checkpoint_fault(self.checkpoint_folder(best.step)) is None
        values = {"step": best.step, "reward": best.reward}
        write_text(self.checkpoints / BEST, json.dumps(values) + "\n")
        if self.mirror is not None:
            self.mirror.push_file(self.checkpoints / BEST)
        self._prune()

    def find_best(self) -> Best | None:
        """The best checkpoint so far, where one is kept and whole."""
        path = self.checkpoints / BEST
        if not path.exists():
            return None
        best = Best(**json.loads(path.read_text(encoding="utf-8")))
        is_whole = checkpoint_fault(self.checkpoint_folder(best.step)) is None
        return best if is_whole else None

    def export(self, checkpoint: Path) -> None:
        """Copy a checkpoint's policy to <out>/policy.safetensors, whole or not at all."""
        target = self.folder / POLICY
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        shutil.copyfile(checkpoint / POLICY, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)

    def newest_checkpoint(self) -> Path:
        """The newest whole checkpoint.

        Raises FileNotFoundError when there is none, ValueError when none of them is whole.
        """
        found, folders = self.find_checkpoint(), self.checkpoint_folders()
        if not folders:
            raise FileNotFoundError(f"no checkpoint in {self.checkpoints} to resume from")
        if found is None:
            fault = checkpoint_fault(folders[-1], is_thorough=True)
            raise ValueError(f"no usable checkpoint to resume from: {folders[-1]} {fault}")
        return found

    def find_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, if any."""
        self.fetch()
        folders = reversed(self.checkpoint_folders())
        return next((p for p in folders if checkpoint_fault(p, is_thorough=True) is None), None)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_text(self.summary_path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def training_prompts(config: TrainConfig) -> tuple[Prompt, ...]:
    return load_prompts(_prompt_file(config), split="train")


def heldout_prompts(config: TrainConfig) -> tuple[Prompt, ...]:
    """The fixed evaluation prompts. Raises ValueError when there are fewer than configured."""
    path = _prompt_file(config)
    prompts = load_prompts(path, split="heldout")
    if len(prompts) < config.evaluation.prompts:
        raise ValueError(
            f"evaluation.prompts is {config.evaluation.prompts}, "
            f"but {path} holds only {len(prompts)} held-out prompts"
        )
    return prompts[: config.evaluation.prompts]


def heldout_chunks(config: TrainConfig) -> tuple[EvaluationChunk, ...]:
    """The evaluation prompts in batches of as many clips as a chunk of training."""
    size = config.rollout.prompts_per_chunk * config.rollout.samples_per_prompt
    return evaluation_chunks(heldout_prompts(config), size)


def listening_chunk(config: TrainConfig) -> EvaluationChunk:
    """The first evaluation prompts: the ones whose audio is kept."""
    prompts = heldout_prompts(config)[: config.evaluation.audio_prompts]
    return EvaluationChunk(first=0, prompts=prompts, mismatched=())


def is_due(step: int, every: int) -> bool:
    """Whether something that happens `every` steps (0: never) happens after step number `step`."""
    return every > 0 and step % every == 0


def is_measured(config: TrainConfig, step: int) -> bool:
    """Whether the held-out prompts are measured after step number `step`: when that is due and,
    where the run is to end with the best policy, after its last step."""
    is_last = config.guards.restore_best and step == config.iterations
    return is_last or is_due(step, config.guards.evaluate_every)


def _prompt_file(config: TrainConfig) -> Path:
    return prompts_of_world(config.model.weights)


def versions() -> dict[str, str]:
    """Versions of everything that decides a run's numbers (and of Ray, where it is installed)."""
    found = {"musicrl": __version__, "python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
