"""`musicrl codec` by a soundfont."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.cli import dispatch


def test_the_command_measures_two_soundfonts(soundfont: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sf2"
    other.write_bytes(soundfont.read_bytes())
    words = [str(soundfont), "--soundfont", f"[{other}]", "--clips", "3", "--levels", "[4]"]
    dispatch(["codec", *words, "--seconds", "3.2", "--json", str(tmp_path / "codec.json")])
    found = json.loads((tmp_path / "codec.json").read_text())
    one, two = found["sources"].values()
    assert one == two
    assert one["4 levels"]["chroma-correlation"]["count"] == 3
