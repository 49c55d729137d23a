"""What tests of preferences share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from musicrl.preference.store import Store
from tests.preference.playable import Clock, playable


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A database with four clips of each of three prompts."""
    opened = Store.open(tmp_path / "preferences.db", clock=clock)
    opened.add_clips(playable(prompt, index) for prompt in range(3) for index in range(4))
    yield opened
    opened.close()
