"""Numbers that are too small, and who refuses them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cluster.cli import main
from musicrl.bounds import at_least


def test_the_first_field_below_the_bound_is_named() -> None:
    at_least(1, steps=1, clips=7)
    with pytest.raises(ValueError, match=r"^clips must be 1 or more, got 0$"):
        at_least(1, steps=3, clips=0, width=-1)
    with pytest.raises(ValueError, match=r"^share must be 0\.5 or more, got nan$"):
        at_least(0.5, share=math.nan)


@pytest.mark.parametrize(
    ("stage", "flag"),
    [
        ("world", "shard-clips"),
        ("prompts", "heldout-prompts"),
        ("codec", "pca-clips"),
        ("embedder", "batch-clips"),
        ("judge", "checkpoint-every"),
        ("semantic", "vectors-per-step"),
        ("policy", "steps"),
        ("quality", "measured"),
        ("fine", "coarse-levels"),
        ("soundstream", "codec.width"),
        ("embedder", "model.num-bands"),
        ("codec", "codec.vocab-size"),
    ],
)
def test_a_stage_refuses_nothing_in_one_sentence(
    stage: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["pretrain", stage, "--world", str(tmp_path / "world"), f"--{flag}", "0"]
    assert main(args) == 1
    name = flag.split(".")[-1].replace("-", "_")
    assert f"{name} must be 1 or more, got 0\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
