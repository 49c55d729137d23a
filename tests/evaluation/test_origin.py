"""The names that clips bear."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from musicrl.evaluation.origin import origin


def test_a_checkpoint_is_named_by_its_run_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / "runs/u/checkpoints/step_000040"
    step.mkdir(parents=True)
    files = [step / "policy.safetensors", tmp_path / "policy-noisy.safetensors"]
    for file in files:
        file.write_bytes(b"weights")
    names = [origin(file, nn.Identity()) for file in files]
    # blake2b of b"weights", 4 bytes
    assert names == ["u-step_000040@4ac21b5f", "policy-noisy@4ac21b5f"]
    monkeypatch.chdir(step)
    assert origin(Path("policy.safetensors"), nn.Identity()) == names[0]
