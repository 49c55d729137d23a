"""Checkpoints at a URL: copied whole, fetched on another machine, refused when damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from musicrl.checkpoint_folder import checkpoint_fault
from musicrl.config import TrainConfig
from musicrl.mirror import Mirror
from musicrl.run import Best, Run


def save(run: Run, step: int) -> Path:
    def write(folder: Path) -> None:
        (folder / "learner.safetensors").write_text(f"weights {step}")

    return run.save_checkpoint(step, {"learner": {"version": step}}, write)


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket" if request.param == "file" else f"memory://{tmp_path}"


def test_another_machine_goes_on_from_the_newest_checkpoint(url: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "one", mirror=Mirror(url))
    for step in (5, 10, 15):
        save(run, step)
        if step == 5:
            run.keep_best(Best(step=5, reward=0.5))
    assert Mirror(url).names() == ["step_000005", "step_000010", "step_000015"]
    save(run, 20)
    assert Mirror(url).names() == ["step_000005", "step_000015", "step_000020"]
    other = Run(tmp_path / "two", mirror=Mirror(url))
    newest = other.newest_checkpoint()
    assert newest == tmp_path / "two" / "checkpoints" / "step_000020"
    assert (newest / "learner.safetensors").read_text() == "weights 20"
    assert other.find_best() == Best(step=5, reward=0.5)
    assert not list(other.checkpoints.glob(".*"))


def test_what_is_not_whole_there_does_not_count(url: str, tmp_path: Path) -> None:
    save(Run(tmp_path / "one", mirror=Mirror(url)), 5)
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(f"{root}/step_000010")
    files.pipe_file(f"{root}/step_000010/learner.safetensors", b"weights 10")
    assert Mirror(url).names() == ["step_000005"]
    assert Mirror(f"{url}/nothing").names() == []


def test_a_damaged_copy_is_refused_and_named(url: str, tmp_path: Path) -> None:
    save(Run(tmp_path / "one", mirror=Mirror(url)), 5)
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/step_000005/learner.safetensors", b"weights 6")
    other = Run(tmp_path / "two", mirror=Mirror(url))
    with pytest.raises(ValueError, match=r"step_000005 has a damaged learner\.safetensors"):
        other.newest_checkpoint()
    assert not list(other.checkpoints.iterdir())
    save(Run(tmp_path / "three", mirror=Mirror(url)), 4)
    assert other.newest_checkpoint().name == "step_000004"


def test_a_local_checkpoint_is_not_fetched_again(url: str, tmp_path: Path) -> None:
    run = Run(tmp_path, mirror=Mirror(url))
    (save(run, 5) / "mark").touch()
    run.fetch()
    assert (run.newest_checkpoint() / "mark").exists()


def test_a_copy_that_another_process_has_fetched_meanwhile_stays(url: str, tmp_path: Path) -> None:
    run = Run(tmp_path, mirror=Mirror(url))
    (save(run, 5) / "mark").touch()
    Mirror(url).pull("step_000005", run.checkpoints)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_000005"]
    assert (run.newest_checkpoint() / "mark").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://me:secret@bucket/run", "must not hold a password"),
        ("carrier-pigeon://bucket", "checkpoint_url 'carrier-pigeon://bucket' cannot be opened"),
    ],
)
def test_urls_that_cannot_be(url: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        Run.of(replace(TrainConfig(out=tmp_path), checkpoint_url=url))
    assert "secret" not in str(raised.value)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = save(Run(tmp_path), 5)
    (folder / "learner.safetensors").write_text("weights 4")
    assert checkpoint_fault(folder) is None
    fault = checkpoint_fault(folder, is_thorough=True)
    assert fault == "has a damaged learner.safetensors: its SHA-256 is not that of state.json"
