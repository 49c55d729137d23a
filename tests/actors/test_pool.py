"""The pool of peers."""

from __future__ import annotations

import pytest

from actors.pool import Peer, Pool

A, B = (Peer(name=name, actor=None) for name in ("sampler 0", "sampler 1"))


def test_peers_work_in_the_order_in_which_they_became_idle() -> None:
    pool = Pool([A, B])
    assert [pool.take(), pool.take()] == [A, B]
    assert not pool.is_idle
    pool.give(B)
    pool.give(A)
    assert [pool.take(), pool.take()] == [B, A]


def test_the_last_peer_is_missed() -> None:
    pool = Pool([A, B])
    pool.drop(pool.take())
    assert pool.size == 1
    with pytest.raises(ConnectionError, match="sampler 1 is gone, and no other can do its work"):
        pool.drop(pool.take())
