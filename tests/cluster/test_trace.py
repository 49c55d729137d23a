"""The trace: spans as hand-computed, and the file as a viewer reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.pool import Peer
from actors.sampler import SampleReport
from cluster.supervise import Fault, Lost, Task
from cluster.trace import Trace
from musicrl.config import load_config
from musicrl.learner import StepReport
from musicrl.rollout import Chunk
from musicrl.solo import solo
from musicrl.types import Prompt
from tests.cluster.test_controller import Rig

CHUNK = Chunk(step=3, index=1, first_prompt=2, prompts=(Prompt(id="0", text="a tune"),) * 2)
SAMPLER, LEARNER = Peer(name="sampler 0", actor=None), Peer(name="learner", actor=None)


def sample_task(peer: Peer = SAMPLER) -> Task:
    return Task(kind="sample", peer=peer, doing="sampling", subject=CHUNK)


def sample_report() -> SampleReport:
    seconds = {"sample": 1.0, "decode": 0.5, "publish": 0.25}
    return SampleReport(version=3, num_bytes=8, seconds=seconds)


def step_report(step: int) -> StepReport:
    seconds = {"learn": 2.0, "publish": 0.5}
    return StepReport(step=step, figures={}, lags={}, failed_rewards={}, seconds=seconds)


def events(path: Path, name: str, ph: str = "X") -> list[dict[str, Any]]:
    found = json.loads(path.read_text())["traceEvents"]
    return [event for event in found if event["name"] == name and event["ph"] == ph]


def test_phases_stand_against_the_end_of_their_span(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(updates=1, path=path)
    trace(sample_task(), sample_report(), 10.0, 12.0)
    trace(Task(kind="learn", peer=LEARNER, doing="training"), step_report(3), 12.0, 15.0)
    assert trace.is_done
    (span,) = events(path, "sample")[:1]
    assert (span["ts"], span["dur"]) == (0.0, 2e6)
    starts = {name: events(path, name)[-1]["ts"] for name in ("publish", "sample", "decode")}
    assert starts == {"publish": 4.5e6, "sample": 0.5e6, "decode": 1.5e6}
    assert [e["ts"] for e in events(path, "publish")] == [0.25e6, 4.5e6]
    assert [e["ts"] for e in events(path, "chunk", "s")] == [2e6]
    assert [e["ts"] for e in events(path, "chunk", "f")] == [2e6]


def test_a_span_begins_when_its_actor_is_free() -> None:
    trace = Trace(updates=9, path=None)
    trace(Task(kind="save", peer=LEARNER, doing="saving"), Path("x"), 1.0, 4.0)
    trace(Task(kind="learn", peer=LEARNER, doing="training"), step_report(0), 2.0, 7.0)
    assert [(s.start, s.end, s.queued) for s in trace.spans] == [(1.0, 4.0, 0.0), (4.0, 7.0, 2.0)]


def test_a_lost_task_is_a_span_and_no_update(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(updates=1, path=path)
    lost = Lost(fault=Fault.PEER, error=RuntimeError("gone"))
    trace(sample_task(), lost, 0.0, 1.0)
    trace(Task(kind="learn", peer=LEARNER, doing="training"), lost, 1.0, 2.0)
    assert not trace.is_done
    trace.close()
    assert [event["args"]["lost"] for event in events(path, "learn")] == [True]


def test_the_first_updates_of_a_run_are_kept_and_then_no_more() -> None:
    rig, trace = Rig(iterations=4), Trace(updates=2, path=None)
    with rig.fleet.pending.watched(trace):
        rig.train()
    kinds = [span.kind for span in trace.spans]
    assert (kinds.count("learn"), kinds[-1]) == (2, "learn")
    assert kinds.count("sample") == kinds.count("score") == 6
    assert [span.step for span in trace.spans if span.kind == "learn"] == [0, 1]


def test_one_process_has_no_tasks_to_trace(tmp_path: Path) -> None:
    config = load_config("tiny", ["--trace", "2", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="trace 2"):
        solo(config)
