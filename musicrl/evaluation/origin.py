"""The name of what made a clip: a policy's file, or the checkpoint that a world starts from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from musicrl.policies.flat import flatten
from musicrl.world import find_policy


def own_policy(folder: Path) -> Path | None:
    """The policy file of a world's folder; None where the world's checkpoint is another folder."""
    file = find_policy(folder, None)
    return file if file.is_file() else None


def origin(file: Path | None, policy: nn.Module) -> str:
    """A policy's name with a digest of its file, or, without one, of its weights."""
    if file is None:
        return f"base@{flatten(policy, 0).digest[:8]}"
    return f"{file.stem}@{hashlib.blake2b(file.read_bytes(), digest_size=4).hexdigest()}"
