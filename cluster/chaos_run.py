"""A run of `musicrl train` in a process of its own that may be killed and started again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from safetensors.numpy import load_file

from musicrl.config import TrainConfig, dump_yaml
from musicrl.run import Run
from musicrl.textfile import write_text

POLL_SECONDS = 0.05
LAST_WORDS = 500
"""Characters of what a driver said last."""


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
        checkpoint = Run(self.config.out).find_checkpoint()
        return 0 if checkpoint is None else int(checkpoint.name.split("_")[1])

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

    @property
    def is_complete(self) -> bool:
        """Whether the last driver trained every one of its steps on all samples."""
        summary = json.loads((self.config.out / "summary.json").read_text())
        trained = sum(summary["lag_histogram"].values())
        whole, rest = divmod(int(trained), self.config.rollout.samples_per_step)
        return rest == 0 and whole <= self.config.iterations

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
