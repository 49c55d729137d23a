"""What tests of preferences share.

The tests of the store run on SQLite, or on the database whose URL MUSICRL_TEST_DATABASE holds, which
is emptied before every test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from musicrl.preference.store import Store
from musicrl.preference.tables import metadata
from tests.preference.playable import Clock, playable

OTHER_DATABASE = "MUSICRL_TEST_DATABASE"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A database with four clips of each of three prompts."""
    opened = Store.open(os.environ.get(OTHER_DATABASE, tmp_path / "preferences.db"), clock=clock)
    if OTHER_DATABASE in os.environ:
        metadata.drop_all(opened.engine)
        metadata.create_all(opened.engine)
    opened.add_clips(playable(prompt, index) for prompt in range(3) for index in range(4))
    yield opened
    opened.close()
