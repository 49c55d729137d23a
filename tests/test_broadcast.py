"""Broadcasts of weights over gloo: all of a version or nothing, and nobody waits beyond a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from musicrl.broadcast import GO, MEMBERS, TURNS, Broadcaster, find_kind
from musicrl.listener import Listener
from musicrl.policies.flat import flatten
from musicrl.ranks import find_store
from musicrl.types import Weights
from tests.sharing import small_policy

HOST = "127.0.0.1"
Listen = Callable[..., Listener]


def weights(version: int) -> Weights:
    policy = small_policy()
    torch.manual_seed(version)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter)
    return flatten(policy, version)


@pytest.fixture
def sender() -> Broadcaster:
    return make_sender(60.0)


def make_sender(timeout_seconds: float) -> Broadcaster:
    cpu = torch.device("cpu")
    return Broadcaster(HOST, kind="gloo", device=cpu, timeout_seconds=timeout_seconds)


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Listeners that have come to a sender, and end with the test."""
    started: list[Listener] = []

    def start(sender: Broadcaster, name: str, timeout_seconds: float = 60.0) -> Listener:
        before = sender._store.add(MEMBERS, 0)
        listener = Listener(
            name,
            sender.address,
            host=HOST,
            kind="gloo",
            device=torch.device("cpu"),
            timeout_seconds=timeout_seconds,
        )
        listener.start()
        started.append(listener)
        await_members(sender, before + 1)
        return listener

    yield start
    for listener in started:
        listener.stop()


def await_members(sender: Broadcaster, count: int) -> None:
    """Until so many have come to a sender, in all."""
    until = time.monotonic() + 60
    while sender._store.add(MEMBERS, 0) < count:
        assert time.monotonic() < until
        time.sleep(0.01)


def assert_has(listener: Listener, wanted: Weights) -> None:
    with listener.held(wanted.version) as found:
        assert found is not None
        np.testing.assert_array_equal(found.flat, wanted.flat)
        assert replace(found, flat=wanted.flat) == wanted


def assert_lacks(listener: Listener, version: int) -> None:
    with listener.held(version) as found:
        assert found is None


def test_every_version_comes_whole_to_all(sender: Broadcaster, listen: Listen) -> None:
    listeners = [listen(sender, f"sampler {number}") for number in range(2)]
    for version in range(1, 5):
        assert sender.publish(weights(version)) == []
        for listener in listeners:
            assert_has(listener, weights(version))
            assert_lacks(listener, version - 1)


def test_what_is_held_is_not_written_over(sender: Broadcaster, listen: Listen) -> None:
    listener = listen(sender, "sampler 0")
    sender.publish(weights(1))
    with listener.held(1) as found:
        assert found is not None
        sender.publish(weights(2))
        np.testing.assert_array_equal(found.flat, weights(1).flat)
    assert_has(listener, weights(2))


def test_nobody_listens(sender: Broadcaster) -> None:
    assert sender.publish(weights(1)) == []


def test_who_comes_later_takes_part_from_then_on(sender: Broadcaster, listen: Listen) -> None:
    early = listen(sender, "sampler 0")
    sender.publish(weights(1))
    late = listen(sender, "sampler 1")
    assert_lacks(late, 1)
    assert sender.publish(weights(2)) == []
    for listener in (early, late):
        assert_has(listener, weights(2))


def test_who_hangs_is_named_within_the_deadline_and_left_out(listen: Listen) -> None:
    sender = make_sender(0.5)
    listener = listen(sender, "sampler 0")
    store = find_store(*sender.address, 60)
    number = store.add(MEMBERS, 1)
    store.set(f"member/{number}", "sampler 1")
    (sentence,) = sender.publish(weights(1))
    assert "sampler 1 took no part in the broadcast of version 1 within 0.5 s" in sentence
    assert_lacks(listener, 1)
    assert sender.publish(weights(2)) == []
    assert_has(listener, weights(2))


def test_who_is_known_to_be_away_is_not_waited_for(sender: Broadcaster, listen: Listen) -> None:
    """And comes anew if it is there after all."""
    listeners = [listen(sender, f"sampler {number}") for number in range(2)]
    assert sender.publish(weights(1), without={"sampler 1"}) == []
    assert_has(listeners[0], weights(1))
    assert_lacks(listeners[1], 1)
    await_members(sender, 3)
    assert sender.publish(weights(2)) == []
    for listener in listeners:
        assert_has(listener, weights(2))


def test_who_comes_anew_takes_the_place_of_the_one_before(
    sender: Broadcaster, listen: Listen
) -> None:
    store = find_store(*sender.address, 60)
    store.set(f"member/{store.add(MEMBERS, 1)}", "sampler 0")
    listener = listen(sender, "sampler 0")
    assert sender.publish(weights(1)) == []
    assert_has(listener, weights(1))


def test_who_dies_in_a_broadcast_is_named_and_the_others_come_anew(listen: Listen) -> None:
    """It answers, and is gone before the group is made."""
    sender = make_sender(1.0)
    listener = listen(sender, "sampler 0", timeout_seconds=1.0)
    store = find_store(*sender.address, 60)
    turn, number = store.add(TURNS, 0), store.add(MEMBERS, 1)
    store.set(f"member/{number}", "sampler 1")
    store.set(f"ready/{turn}/{number}", GO)
    (sentence,) = sender.publish(weights(1))
    assert "sampler 1 took no part" in sentence
    assert_lacks(listener, 1)
    await_members(sender, 3)
    assert sender.publish(weights(2)) == []
    assert_has(listener, weights(2))


def test_what_is_damaged_is_not_handed_out(sender: Broadcaster, listen: Listen) -> None:
    listener = listen(sender, "sampler 0")
    sender.publish(weights(1))
    sender.publish(replace(weights(2), checksum="another"))
    assert_lacks(listener, 2)
    sender.publish(weights(3))
    assert_has(listener, weights(3))


def test_a_listener_ends_with_its_sender(listen: Listen) -> None:
    sender = make_sender(60.0)
    listener = listen(sender, "sampler 0")
    sender.publish(weights(1))
    del sender
    listener.join(60)
    assert not listener.is_alive()


@pytest.mark.parametrize(
    ("learner", "sampler", "kind"), [(0, 0, "gloo"), (1, 0.5, "gloo"), (1, 1, "nccl")]
)
def test_nccl_is_for_gpus_of_their_own(learner: float, sampler: float, kind: str) -> None:
    assert find_kind(learner, sampler) == kind
