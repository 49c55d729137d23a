"""A run of `musicrl train` in a process of its own that may be killed and started again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from musicrl.archive import FOLDER, Archive
from musicrl.checkpoint_folder import checkpoint_fault
from musicrl.config import TrainConfig, dump_yaml
from musicrl.rollout import chunk_seeds
from musicrl.run import Run
from musicrl.textfile import write_text

POLL_SECONDS = 0.05
LAST_WORDS = 500
"""Characters of what a driver said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of the samples of a run."""

    samples: int
    """That its steps should have been trained on, each known by its seed."""
    lost: int
    duplicated: int
    """Or of no step at all."""
    too_old: int
    """Older than `cluster.max_lag` versions, or newer than their step."""

    @property
    def is_sound(self) -> bool:
        return not (self.lost or self.duplicated or self.too_old)


class ChaosRun:
    """Progress is what its folder shows."""

    def __init__(self, config: TrainConfig, address: str) -> None:
        self.config, self.address = config, address
        self.file = config.out.with_suffix(".yaml")
        self.log = config.out.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, resume: bool = False) -> None:
        """Begin, or go on after a kill; from the beginning where nothing was kept yet."""
        write_text(self.file, dump_yaml(self.config))
        command = [sys.executable, "-m", "cluster.cli", "train", str(self.file)]
        if resume and self.version:
            command += ["--resume", "True"]
        environment = {**os.environ, "RAY_ADDRESS": self.address}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL to the driver."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def version(self) -> int:
        """Of the newest checkpoint."""
        folders = reversed(Run(self.config.out).checkpoint_folders())
        whole = (folder for folder in folders if checkpoint_fault(folder) is None)
        return next((int(folder.name.split("_")[1]) for folder in whole), 0)

    def wait_for(self, version: int, patience: float, *, restart: bool = False) -> float | None:
        """Seconds until a version is kept, after starting the driver again if asked; None where it
        is not in time."""
        began = time.monotonic()
        if restart:
            self.start(resume=True)
        while time.monotonic() - began < patience:
            if self.version >= version:
                return time.monotonic() - began
            if not self.is_alive:
                return None
            time.sleep(POLL_SECONDS)
        return None

    def wait(self) -> None:
        """Until the driver ends by itself."""
        assert self.process is not None
        self.process.wait()

    @property
    def has_finished(self) -> bool:
        path = self.config.out / "summary.json"
        return path.is_file() and bool(json.loads(path.read_text())["finished"])

    def account(self) -> Account:
        """Of the samples that all steps were trained on, from the archive of the run."""
        archive, rollout = Archive(self.config.out / FOLDER), self.config.rollout
        expected, found, too_old = Counter[int](), Counter[int](), 0
        for step in range(self.config.iterations):
            prompts = range(rollout.prompts_per_step)
            seeds = chunk_seeds(self.config.seed, step, prompts, rollout.samples_per_prompt)
            expected.update(seeds.tolist())
            for experience in archive.read(step) if step in archive.steps() else ():
                found.update(experience.rollouts.seeds.tolist())
                ages = step - experience.rollouts.version
                too_old += int(((ages < 0) | (ages > self.config.cluster.max_lag)).sum())
        return Account(
            samples=expected.total(),
            lost=(expected - found).total(),
            duplicated=(found - expected).total(),
            too_old=too_old,
        )

    @property
    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-LAST_WORDS:]


def weights_digest(out: Path) -> str:
    """Of the last checkpoint's policy: its tensors alone, since a file says whose it is."""
    checkpoint = Run(out).find_checkpoint()
    if checkpoint is None:
        return "none"
    digest = hashlib.blake2b()
    for name, array in sorted(load_file(checkpoint / "policy.safetensors").items()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
