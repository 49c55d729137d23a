"""Ctrl-C on a run with a Ray of its own, as a terminal sends it: to the whole process group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEADLINE_SECONDS = 120


@pytest.mark.ray
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_exit_code_0(
    tiny_world: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    settings = {
        "out": out,
        "iterations": 100_000,
        "model.weights": tiny_world,
        "rollout.prompts_per_step": 4,
        "rollout.prompts_per_chunk": 4,
        "rollout.clip_seconds": 0.4,
        "evaluation.prompts": 4,
        "cluster.num_samplers": 1,
        "cluster.learner_threads": 1,
        "cluster.object_store_mb": 100,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "train", *flags],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        await_line(log, "training 3/", process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] is False
    assert 3 <= summary["iterations"] < 100_000
    newest = max((out / "checkpoints").iterdir())
    assert newest.name == f"step_{summary['iterations']:06d}"
    assert "Traceback" not in log.read_text()


def await_line(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
