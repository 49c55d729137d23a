"""Sessions of listeners: a signed cookie that holds a pseudonym, and limits on how often they ask.

The key that signs is a file that only its owner may read, or comes from the environment. Knows
nothing of HTTP frameworks; no address and no name is ever written down.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from itsdangerous import BadData, URLSafeTimedSerializer

KEY_VARIABLE = "MUSICRL_COLLECT_KEY"
COOKIE = "musicrl_session"
LIFETIME_SECONDS = 180 * 24 * 3600
MOST_KEYS = 10_000
"""Buckets of a rate limit that are remembered; beyond, full ones are forgotten."""


class Sessions:
    """Makes and reads cookies. Those of another key, or of another access token, are not known."""

    def __init__(self, key: str, access_token: str | None = None) -> None:
        salt = f"session/{access_token or ''}"
        self._serializer = URLSafeTimedSerializer(key, salt=salt)

    def new(self) -> tuple[str, str]:
        """A rater's new pseudonym and the cookie that proves it."""
        rater = secrets.token_hex(8)
        return rater, self._serializer.dumps(rater)

    def rater(self, cookie: str | None) -> str | None:
        """The pseudonym that a cookie proves, if it does."""
        try:
            found = self._serializer.loads(cookie or "", max_age=LIFETIME_SECONDS)
        except BadData:
            return None
        return found if isinstance(found, str) else None


class RateLimit:
    """So many requests a minute for each key, and as many at once (a token bucket)."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._rate = float(per_minute), per_minute / 60
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = Lock()

    def take(self, key: str) -> float:
        """Seconds until the key may ask again; 0 when it may now, which is then counted."""
        with self._lock:
            now = self._clock()
            level, since = self._buckets.get(key, (self._size, now))
            level = min(self._size, level + (now - since) * self._rate)
            may = level >= 1
            self._buckets[key] = (level - may, now)
            if len(self._buckets) > MOST_KEYS:
                self._forget(now)
            return 0.0 if may else (1 - level) / self._rate

    def _forget(self, now: float) -> None:
        self._buckets = {
            key: (level, since)
            for key, (level, since) in self._buckets.items()
            if level + (now - since) * self._rate < self._size
        }


def read_key(path: Path) -> str:
    """The key of the environment, else of a file, which is made, for its owner alone, if missing.

    Raises ValueError naming a file that others may read, or that holds no key.
    """
    if key := os.environ.get(KEY_VARIABLE):
        return key
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _stored_key(path)
    key = secrets.token_hex(32)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def _stored_key(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} signs sessions and others may read it: chmod 600 {path}")
    key = path.read_text(encoding="ascii").strip()
    if len(key) < 32:
        raise ValueError(f"{path} holds no key of 32 characters or more: remove it for a new one")
    return key
