"""What made a clip: where a policy's file is found, and the name that its clips bear."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from musicrl.policies.flat import digest, flatten, split
from musicrl.world import find_policy

BASE = "base"
"""Name of the policy that others are compared with."""


def policy_file(path: Path, world: Path) -> Path:
    """The policy of a file (here, or in the world's folder), of a checkpoint folder, or of a run's
    newest checkpoint."""
    checkpoints = sorted((path / "checkpoints").glob("step_*/policy.safetensors"))
    found = [path, path / "policy.safetensors", *reversed(checkpoints), world / path]
    for file in found:
        if file.is_file():
            return file
    raise FileNotFoundError(f"no policy at {path}: neither a file, nor a checkpoint, nor a run")


def own_policy(folder: Path) -> Path | None:
    """The policy file of a world's folder; None where the world's checkpoint is another folder."""
    file = find_policy(folder, None)
    return file if file.is_file() else None


def origin(file: Path | None, policy: nn.Module) -> str:
    """A policy's name with a digest of its file, or, without one, of its weights."""
    if file is None:
        return f"base@{digest(split(flatten(policy, 0)).values())[:8]}"
    return f"{_name(file)}@{hashlib.blake2b(file.read_bytes(), digest_size=4).hexdigest()}"


def _name(file: Path) -> str:
    """The file's, or a checkpoint's run and step: the file itself is a `policy` in every one."""
    step = file.parent.resolve()
    return (
        f"{step.parent.parent.name}-{step.name}" if step.parent.name == "checkpoints" else file.stem
    )
