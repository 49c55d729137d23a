"""MuQ-MuLan on a stand-in of its package's network: rows, files, refusals, and as a world's judge."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from musicrl.embedders.muq import MuQMuLan
from musicrl.embedders.table import load_embedder
from musicrl.evaluation.musicgen_ears import musicgen_ears
from musicrl.types import Clips, Prompt

RATE, SECONDS = 100, 2
VALUES = {
    "mulan": {"sr": RATE, "clip_secs": SECONDS, "dim_latent": 2},
    "audio_model": {"name": "someone/muq-small"},
    "text_model": {"name": "xlm-roberta-tiny"},
}


class StandIn(nn.Module):
    """The signature of the package's `MuQMuLan`: audio by its level, text by its length."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        for part in ("audio_model", "text_model"):
            assert Path(config[part]["name"]).is_dir(), "an encoder is named by its folder"
        self.turn = nn.Parameter(torch.eye(2))

    def forward(self, wavs: Tensor | None = None, texts: list[str] | None = None) -> Tensor:
        if wavs is not None:
            assert wavs.shape[1] == RATE * SECONDS
            rows = torch.stack([torch.ones(len(wavs)), wavs.mean(1)], 1)
        else:
            assert texts is not None
            longest = max(map(len, texts))  # as padding would count
            rows = torch.tensor([[1.0, len(text) / longest + len(text)] for text in texts])
        return F.normalize(rows @ self.turn, dim=-1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("someone/muq-small", "xlm-roberta-tiny"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(VALUES))
    save_file({"turn": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in where the package has its network."""
    found = ModuleType("muq")
    found.MuQMuLan = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "muq", found)


@pytest.mark.usefixtures("package")
def test_rows_are_those_of_the_files_weights(folder: Path) -> None:
    """The file's weights swap the two axes."""
    model = load_embedder(folder)
    assert (model.sample_rate, model.window_seconds) == (RATE, SECONDS)
    audio = torch.tensor([[0.5], [-0.25]]).expand(2, RATE * SECONDS)
    expected = F.normalize(torch.tensor([[0.5, 1.0], [-0.25, 1.0]]), dim=-1)
    torch.testing.assert_close(model.embed_audio(audio), expected)
    long = torch.cat([audio[:1], audio[1:]], 1)
    torch.testing.assert_close(
        model.embed_clip(long), F.normalize(expected.mean(0, keepdim=True), dim=-1)
    )


@pytest.mark.usefixtures("package")
def test_a_texts_row_does_not_depend_on_the_others(folder: Path) -> None:
    model = MuQMuLan.from_folder(folder)
    short, long = "a reel", "a slow waltz for two flutes"
    torch.testing.assert_close(model.embed_text([short, long])[:1], model.embed_text([short]))


@pytest.mark.usefixtures("package")
def test_what_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "xlm-roberta-tiny").rmdir()
    with pytest.raises(ValueError, match="hub:xlm-roberta-tiny is not in the local cache"):
        MuQMuLan.from_folder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"a pytorch_model\.bin is a pickle, and is not"):
        MuQMuLan.from_folder(folder)
    (folder / "config.json").write_text('{"mulan": {}}')
    with pytest.raises(ValueError, match="holds no CLAP or MuQ-MuLan"):
        load_embedder(folder)


def test_without_the_package_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "muq", None)
    with pytest.raises(ValueError, match=r"needs the extra: pip install 'musicrl\[muq\]'"):
        MuQMuLan.from_folder(folder)


@pytest.mark.usefixtures("package")
def test_it_may_judge_a_musicgen_world(folder: Path, musicgen_world: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    for name in ("musicgen", "clap"):
        (world / name).symlink_to(musicgen_world / name)
    settings = (musicgen_world / "world.yaml").read_text()
    (world / "world.yaml").write_text(f"{settings}judge: path:{folder}\n")
    ears = musicgen_ears(world)
    clips = Clips(audio=np.full((1, 2 * RATE), 0.5, np.float32), sample_rate=RATE)
    expected = F.normalize(torch.tensor([[0.5, 1.0]]), dim=-1)
    np.testing.assert_allclose(ears.embed(clips)["judge"], expected, atol=1e-6)
    text = torch.tensor([7.0 / 1, 1.0])  # the row of "a reel", its axes swapped: 6 letters + 6 / 6
    cosine = F.cosine_similarity(expected, text[None])
    found = ears.judges[0]([Prompt(id="1", text="a reel")], clips)
    np.testing.assert_allclose(found, cosine.numpy(), atol=1e-6)
