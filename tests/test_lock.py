"""One process at a time works in a folder, and a killed one blocks nobody."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli import EXIT_FAULT, main
from musicrl.lock import LOCK, check_free, held

HOLD = """
import sys
from pathlib import Path
from musicrl.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
Holder = subprocess.Popen[str]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    """Another process that has the folder `tmp_path / "out"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_every_verb_that_makes_a_folder_names_who_has_it(
    holder: Holder, tmp_path: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    small = f"--model.weights {tiny_world} --rollout.clip-seconds 0.4 --evaluation.prompts 6"
    commands = (
        f"train --out {out} {small}",
        f"solo --out {out} {small}",
        f"fit-reward no.parquet --out {out}",
        f"pretrain --out {out}",
        f"reproduce --out {out}",
        f"prefs pool --out {out}",
    )
    for command in commands:
        assert main(command.split()) == EXIT_FAULT
        sentence = capsys.readouterr().err
        assert sentence.count("\n") == 1
        assert f"{out} is in use by process {holder.pid} on " in sentence, command
    assert [path.name for path in out.iterdir()] == [LOCK]


def test_what_a_killed_process_leaves_blocks_nobody(holder: Holder, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / LOCK).exists()
    check_free(folder)
    with held(folder):
        assert (folder / LOCK).read_text().startswith("process ")
    assert not (folder / LOCK).exists()


def test_a_folder_is_free_again_after_its_block_and_after_a_fault(tmp_path: Path) -> None:
    check_free(tmp_path / "never")
    with held(tmp_path):
        for take in (check_free, fail_inside):
            with pytest.raises(ValueError, match="is in use by process"):
                take(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        fail_inside(tmp_path)
    with held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def fail_inside(folder: Path) -> None:
    with held(folder):
        raise OSError("disk full")
