"""Supervision: what a failure means, and deadlines that name the peer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ray import exceptions

from actors.pool import Peer
from cluster.supervise import Fault, Lost, Pending, Task, classify

SAMPLER = Peer(name="sampler 1", actor=None)


class Finished:
    """A store in which everything has finished, with a value or an error."""

    def __init__(self, results: dict[str, Any], *, is_ready: bool = True) -> None:
        self.results = results
        self.is_ready = is_ready

    def wait(
        self, refs: list[str], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[str], list[str]]:
        return (refs[:num_returns], refs[num_returns:]) if self.is_ready else ([], refs)

    def get(self, ref: str, *, timeout: float) -> Any:
        value = self.results[ref]
        if isinstance(value, BaseException):
            raise value
        return value


def task(kind: str = "sample", doing: str = "sampling chunk 2 of step 7") -> Task:
    return Task(kind=kind, peer=SAMPLER, doing=doing)


def wrapped(cause: Exception) -> exceptions.RayTaskError:
    """The failure of a consumer whose argument, or whose own code, failed with `cause`."""
    return exceptions.RayTaskError("score", "a traceback", cause)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (exceptions.ActorDiedError(), Fault.PEER),
        (exceptions.ActorUnavailableError("restarting", None), Fault.PEER),
        (exceptions.WorkerCrashedError(), Fault.PEER),
        (exceptions.ObjectLostError("00", None, "stack"), Fault.BYTES),
        (exceptions.OwnerDiedError("00", None, "stack"), Fault.BYTES),
        (wrapped(exceptions.ActorDiedError()), Fault.PEER),
        (wrapped(exceptions.ObjectLostError("00", None, "stack")), Fault.BYTES),
        (wrapped(wrapped(exceptions.ActorDiedError())), Fault.PEER),
        (wrapped(exceptions.GetTimeoutError("slow")), Fault.BYTES),
        (wrapped(ValueError("misshapen")), Fault.RAISED),
    ],
)
def test_an_error_is_classified_by_its_root(error: Exception, fault: Fault) -> None:
    assert classify(error)[0] is fault


def test_what_finished_comes_with_its_task_and_leaves() -> None:
    pending = Pending(store=Finished({"a": 1, "b": 2}), timeout_seconds=10)
    pending.add("a", task("sample"))
    pending.add("b", task("score"))
    assert pending.count("sample", "score") == 2
    assert [(t.kind, value) for t, value in pending.wait(0)] == [("sample", 1), ("score", 2)]
    assert pending.count("sample", "score") == 0
    assert pending.wait(0) == []


def test_a_dead_peer_is_a_result() -> None:
    pending = Pending(store=Finished({"a": exceptions.ActorDiedError()}), timeout_seconds=10)
    pending.add("a", task())
    ((_, result),) = pending.wait(0)
    assert isinstance(result, Lost)
    assert result.fault is Fault.PEER


def test_what_a_task_raises_ends_the_run_in_one_sentence() -> None:
    store = Finished({"a": wrapped(ValueError("weights hold NaN"))})
    pending = Pending(store=store, timeout_seconds=10)
    pending.add("a", task())
    with pytest.raises(
        ValueError, match=r"^sampler 1, sampling chunk 2 of step 7: weights hold NaN$"
    ):
        pending.wait(0)


def test_a_missed_deadline_names_the_peer_and_what_it_was_doing() -> None:
    now = [0.0]
    pending = Pending(store=Finished({}, is_ready=False), timeout_seconds=5, clock=lambda: now[0])
    pending.add("a", task())
    now[0] = 5.0
    assert pending.wait(0) == []
    now[0] = 5.1
    with pytest.raises(
        TimeoutError, match="sampler 1 was still sampling chunk 2 of step 7 after 5 s"
    ):
        pending.wait(0)


def test_what_may_be_late_is_lost_at_its_deadline() -> None:
    now, told = [0.0], list[Any]()
    pending = Pending(store=Finished({}, is_ready=False), timeout_seconds=5, clock=lambda: now[0])
    pending.add("a", replace(task(), may_raise=True))
    now[0] = 2.0
    pending.add("b", replace(task(), may_raise=True))
    now[0] = 5.1
    assert len(list(pending.older_than("sample", 3.0))) == 2
    assert len(list(pending.older_than("sample", 4.0))) == 1
    assert not list(pending.older_than("score", 0.0))
    with pending.watched(lambda t, result, sent, done: told.append((result, sent, done))):
        ((_, result),) = pending.wait(0)
    assert (result.fault, pending.count("sample")) == (Fault.LATE, 1)
    assert str(result) == (
        "it was late (sampler 1 was still sampling chunk 2 of step 7 after 5 s "
        "(cluster.task_timeout_seconds))"
    )
    assert told == [(result, 0.0, 5.1)]


def test_a_call_that_nothing_can_go_on_without_names_its_peer() -> None:
    store = Finished(
        {
            "slow": exceptions.GetTimeoutError("no answer"),
            "dead": exceptions.ActorDiedError(),
        }
    )
    pending = Pending(store=store, timeout_seconds=5)
    with pytest.raises(TimeoutError, match="sampler 1 was still starting after 5 s"):
        pending.call("slow", SAMPLER, "starting")
    with pytest.raises(ConnectionError, match="sampler 1 was starting when its process died"):
        pending.call("dead", SAMPLER, "starting")
