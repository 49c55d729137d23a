"""The page plays the newest checkpoint of a run, and no pair is dropped or mixed by the change."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from cluster.cli import EXIT_FAULT, main
from musicrl.preference.collect import CollectConfig, make_players
from musicrl.preference.players import Player, RunFollower, newest_policy
from musicrl.preference.source import Pair, SamplerSource
from musicrl.preference.store import Store
from musicrl.types import Clips, Prompt, Rollouts

PROMPT = Prompt(id="p", text="a tune")


class Worker:
    """Makes clips of its own number, once it may."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.begun, self.go = Event(), Event()
        self.go.set()

    def generate(
        self, prompts: list[Prompt], *, run_seed: int, **fields: object
    ) -> tuple[Rollouts, Clips]:
        self.begun.set()
        assert self.go.wait(10)
        tokens = np.random.default_rng(run_seed).integers(0, 99, (2, 3, 1), dtype=np.int16)
        rollouts = Rollouts(
            prompts=(prompts[0], prompts[0]),
            conditions=np.zeros((2, 1), np.int16),
            tokens=tokens,
            logprobs=np.zeros(tokens.shape, np.float32),
            group=np.zeros(2, np.int32),
            seeds=np.zeros(2, np.uint64),
            version=np.zeros(2, np.int64),
        )
        return rollouts, Clips(audio=np.zeros((2, 100), np.float32), sample_rate=16000)


def player(number: int) -> Player:
    return Player(Worker(number), f"run-{number}@0f")  # type: ignore[arg-type]


def write_checkpoint(run: Path, step: int, text: str = "weights") -> Path:
    file = run / "checkpoints" / f"step_{step:06d}" / "policy.safetensors"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def load(file: Path) -> Player:
    if file.read_text() == "damaged":
        raise ValueError(f"{file} is damaged")
    return player(int(file.parent.name.removeprefix("step_")))


def policies(pair: Pair) -> list[str]:
    return [clip.clip.policy for clip in pair]


def test_a_pair_in_work_ends_as_it_began_and_the_next_is_of_the_newer(
    tmp_path: Path, store: Store
) -> None:
    run, first = tmp_path / "run", player(0)
    run.mkdir()
    worker = first.worker
    assert isinstance(worker, Worker)
    worker.go.clear()
    follower = RunFollower(run, first, load, every_seconds=0.01)
    source = SamplerSource(follower, [PROMPT], tmp_path / "clips", store, queue=4)
    in_work, waits = source.pair("ann", "a tune"), source.pair("bob", "a tune")
    assert worker.begun.wait(10)
    write_checkpoint(run, 10)
    write_checkpoint(run, 9)  # not by its time: by its step
    while follower.player is first:
        Event().wait(0.005)
    assert not in_work.done()
    worker.go.set()
    assert policies(in_work.result(10)) == ["run-0@0f"] * 2
    assert policies(waits.result(10)) == ["run-10@0f"] * 2
    source.close()
    assert not follower._thread.is_alive()


def test_what_cannot_be_played_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    follower = RunFollower(tmp_path, player(0), load, every_seconds=60)
    bad = write_checkpoint(tmp_path, 5, "damaged")
    with caplog.at_level(logging.WARNING):
        assert [follower.look(), follower.look()] == [False, False]
    assert [record.message for record in caplog.records] == [
        f"{bad} is not played: {bad} is damaged"
    ]
    assert follower.player.policy == "run-0@0f"
    (tmp_path / "checkpoints" / ".step_000007.partial").mkdir()
    write_checkpoint(tmp_path, 6)
    assert [follower.look(), follower.look()] == [True, False]
    assert follower.player.policy == "run-6@0f"
    follower.close()


def test_a_checkpoint_is_named_by_run_step_and_weights(tiny_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "nightly"
    config = CollectConfig(weights=tiny_world, follow=run, clip_seconds=0.4)
    file = write_checkpoint(run, 40)
    shutil.copyfile(tiny_world / "policy-noisy.safetensors", file)
    players = make_players(config)
    name, digest = players.player.policy.split("@")
    assert name == "nightly-step_000040"
    assert len(digest) == 8
    assert newest_policy(run) == file
    players.close()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--follow no/run", "no run at no/run to follow"),
        ("--follow runs --pool p", "clips come from the pool or from the run to follow"),
        ("--follow runs --follow-seconds 0", "follow_seconds must be above 0, got 0.0"),
    ],
)
def test_faults_are_one_sentence(
    flags: str,
    sentence: str,
    tiny_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"collect --port 0 --out {tmp_path} --weights {tiny_world} {flags}"
    assert main(command.split()) == EXIT_FAULT
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
