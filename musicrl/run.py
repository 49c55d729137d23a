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
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from musicrl import __version__
from musicrl.config import TrainConfig, dump_yaml
from musicrl.evaluation.heldout import EvaluationChunk, evaluation_chunks
from musicrl.lock import held
from musicrl.prompts import load_prompts
from musicrl.types import Prompt
from musicrl.worlds import prompts_of_world

KEPT_CHECKPOINTS = 2
POLICY = "policy.safetensors"
STATE = "state.json"
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

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        self.folder = folder
        self.first_step = first_step
        """Training steps that were done before this process began."""

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
        run = cls(config.out)
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
        found = (self.folder / "checkpoints").glob("step_*")
        return sorted(p for p in found if re.fullmatch(r"step_\d+", p.name))

    def save_checkpoint(
        self, step: int, state: Mapping[str, Any], write: Callable[[Path], None]
    ) -> Path:
        """Checkpoint of the run after `step` training steps: what `write` puts into the folder it
        is given, and `state`. Older ones are deleted but for the newest two and the best."""
        target = self.checkpoint_folder(step)
        if checkpoint_fault(target) is None:
            return target
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        write_text(partial / STATE, json.dumps({**state, "step": step, "files": sizes}, indent=1))
        _sync(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(target.parent)
        self._prune()
        return target

    def _prune(self) -> None:
        best = self.find_best()
        for old in self.checkpoint_folders()[:-KEPT_CHECKPOINTS]:
            if best is None or old != self.checkpoint_folder(best.step):
                shutil.rmtree(old)

    def checkpoint_folder(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:06d}"

    def keep_best(self, best: Best) -> None:
        """Keep a checkpoint that is on disk, in place of the best so far."""
        assert checkpoint_fault(self.checkpoint_folder(best.step)) is None
        values = {"step": best.step, "reward": best.reward}
        write_text(self.folder / "checkpoints" / BEST, json.dumps(values) + "\n")
        self._prune()

    def find_best(self) -> Best | None:
        """The best checkpoint so far, where one is kept and whole."""
        path = self.folder / "checkpoints" / BEST
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
        folders, found = self.checkpoint_folders(), self.find_checkpoint()
        if not folders:
            raise FileNotFoundError(
                f"no checkpoint in {self.folder / 'checkpoints'} to resume from"
            )
        if found is None:
            fault = checkpoint_fault(folders[-1])
            raise ValueError(f"no usable checkpoint to resume from: {folders[-1]} {fault}")
        return found

    def find_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, if any."""
        whole = (p for p in reversed(self.checkpoint_folders()) if checkpoint_fault(p) is None)
        return next(whole, None)

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


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint that is whole."""
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def checkpoint_fault(folder: Path) -> str | None:
    """What keeps a checkpoint from being used, as the end of a sentence; None for a whole one."""
    try:
        sizes = read_state(folder)["files"]
    except FileNotFoundError:
        return f"lacks {STATE}"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return f"has an unreadable {STATE}"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"lacks {name}"
        if (folder / name).stat().st_size != size:
            return f"has a truncated {name}"
    return None


def versions() -> dict[str, str]:
    """Versions of everything that decides a run's numbers (and of Ray, where it is installed)."""
    found = {"musicrl": __version__, "python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _sync(folder: Path) -> None:
    """Flush a folder's files and its own entries to the disk."""
    for path in (*(p for p in folder.iterdir() if p.is_file()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
