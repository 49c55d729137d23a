from __future__ import annotations

from pathlib import Path

import pytest

from musicrl.preference.session import KEY_VARIABLE, MOST_KEYS, RateLimit, Sessions, read_key
from tests.preference.playable import Clock


def test_a_cookie_proves_a_pseudonym_to_its_own_server_only() -> None:
    sessions = Sessions("k" * 32)
    rater, cookie = sessions.new()
    assert sessions.rater(cookie) == rater
    assert sessions.new()[0] != rater
    payload, rest = cookie.split(".", 1)
    for forged in (None, "", "x", rater, f"{payload[:-1]}x.{rest}", cookie[:-1]):
        assert sessions.rater(forged) is None
    assert Sessions("l" * 32).rater(cookie) is None
    assert Sessions("k" * 32, "token").rater(cookie) is None


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "session.key"
    key = read_key(path)
    assert len(key) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path) == key
    path.chmod(0o640)
    with pytest.raises(ValueError, match=f"{path} signs sessions and others may read it"):
        read_key(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ValueError, match=f"{path} holds no key"):
        read_key(path)


def test_the_key_of_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "of the environment")
    assert read_key(tmp_path / "session.key") == "of the environment"
    assert not (tmp_path / "session.key").exists()


def test_a_limit_is_a_bucket_that_fills_with_time(clock: Clock) -> None:
    limit = RateLimit(30, clock=clock)  # one in two seconds
    assert [limit.take("ann") for _ in range(30)] == [0.0] * 30
    assert limit.take("ann") == 2.0
    assert limit.take("bob") == 0.0
    clock.pass_by(1.5)
    assert limit.take("ann") == pytest.approx(0.5)
    clock.pass_by(0.5)
    assert limit.take("ann") == 0.0
    assert limit.take("ann") == 2.0


def test_full_buckets_are_forgotten_and_others_are_not(clock: Clock) -> None:
    limit = RateLimit(60, clock=clock)
    for number in range(MOST_KEYS):
        limit.take(str(number))
    clock.pass_by(1.0)
    assert [limit.take("ann") for _ in range(61)] == [0.0] * 60 + [1.0]
    assert len(limit._buckets) == 1
