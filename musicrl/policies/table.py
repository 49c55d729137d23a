"""The families of token models. To add one: a file in this folder and a line below."""

from __future__ import annotations

from collections.abc import Mapping

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.musiclm import MusicLM

POLICIES: Mapping[str, type[MusicLM | DelayedLM]] = {"musiclm": MusicLM, "delayed": DelayedLM}
"""Name of a family to its class; a class has `from_file(path)`."""
