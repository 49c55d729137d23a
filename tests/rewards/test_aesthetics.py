"""The reward `aesthetics` on a stand-in of its package's network: windows, axes, files, refusals."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from musicrl.rewards import RewardConfig, make_mix
from musicrl.rewards.aesthetics import AXES, Aesthetics, AestheticsConfig, load_aesthetics
from musicrl.types import Clips, Prompt
from musicrl.world import World

RATE = 16_000
SCALES = {axis: {"mean": 5.0, "std": 2.0} for axis in AXES}


class StandIn(nn.Module):
    """The signature of `AesMultiOutput`; PQ hears the level of the clip's own samples, CE none."""

    def __init__(self, *, target_transform: Mapping[str, Any], precision: str = "bf16") -> None:
        super().__init__()
        assert precision == "32", "bfloat16 is a GPU's"
        self.target_transform = target_transform
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        wav, mask = batch["wav"], batch["mask"]
        assert wav.shape == mask.shape == (len(wav), 1, 10 * RATE)
        assert mask.dtype == torch.bool
        assert not wav[~mask].any()
        level = (wav.abs() * mask).sum(2) / mask.sum(2)
        return {axis: (self.gain * level * (axis == "PQ"))[:, 0] for axis in AXES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"gain": torch.full((1,), 3.0)}, tmp_path / "model.safetensors")
    values = {"target_transform": SCALES, "precision": "bf16"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    return tmp_path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in where the package has its network."""
    found = ModuleType("audiobox_aesthetics.model.aes")
    found.AesMultiOutput = StandIn  # type: ignore[attr-defined]
    for name in ("audiobox_aesthetics", "audiobox_aesthetics.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.model.aes", found)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=str(i), text="a tune") for i in range(count)]


def levels(*levels: tuple[float, float]) -> Clips:
    """Clips of 15 s: 10 s of one level and 5 s of another."""
    rows = [np.repeat(np.array(pair, np.float32), [10 * RATE, 5 * RATE]) for pair in levels]
    return Clips(audio=np.stack(rows), sample_rate=RATE)


def test_windows_count_by_the_time_they_hold() -> None:
    """(0.4 x 1 + 0.1 x 0.5) / 1.5 = 0.3, and 5 + 2 x 0.3."""
    reward = Aesthetics(StandIn(target_transform=SCALES, precision="32"), {"PQ": 1.0}, batch=3)
    found = reward(prompts(2), levels((0.4, 0.1), (0.2, 0.2)))
    np.testing.assert_allclose(found, [5.6, 5.4], atol=1e-5)


def test_axes_are_averaged_by_their_shares() -> None:
    network = StandIn(target_transform=SCALES, precision="32")
    found = Aesthetics(network, {"PQ": 3.0, "CE": 1.0})(prompts(1), levels((0.2, 0.2)))
    assert found.tolist() == pytest.approx([5 + 2 * 0.2 * 3 / 4])


def test_other_rates_are_resampled_and_silence_has_no_mark() -> None:
    network = StandIn(target_transform=SCALES, precision="32")
    audio = np.zeros((3, 32_000), np.float32)
    audio[0] = np.sin(np.arange(32_000) * 0.05)
    audio[2, 7] = np.nan
    found = Aesthetics(network, {"PQ": 1.0})(prompts(3), Clips(audio=audio, sample_rate=32_000))
    assert found[0] == pytest.approx(5 + 2 * 2 / np.pi, abs=0.01)
    assert np.isnan(found[1:]).all()


@pytest.mark.usefixtures("package")
def test_a_mix_reads_weights_from_a_folder_and_shows_their_licence(
    folder: Path, tiny_world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The raw mark of gain 3 is 5 + 2 x 0.6; in the mix marks of 1 to 10 are 0 to 1."""
    config = RewardConfig(
        weights={"aesthetics": 1.0}, aesthetics=AestheticsConfig(model=f"path:{folder}")
    )
    with caplog.at_level(logging.WARNING):
        mix = make_mix(config, World.load(tiny_world))
    assert f"path:{folder}: licence cc-by-4.0" in caplog.text
    found = mix(prompts(1), levels((0.2, 0.2)))
    assert found.terms["aesthetics"].tolist() == pytest.approx([6.2])
    assert found.total.tolist() == pytest.approx([5.2 / 9])


@pytest.mark.usefixtures("package")
def test_files_that_do_not_fit_are_named(folder: Path) -> None:
    config = AestheticsConfig(model=f"path:{folder}")
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="lacks the tensor 'gain'"):
        load_aesthetics(config)
    (folder / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(ValueError, match=r"config\.json has no 'target_transform' of CE, CU"):
        load_aesthetics(config)
    with pytest.raises(ValueError, match="hub:facebook/audiobox-aesthetics is not in the local"):
        load_aesthetics(AestheticsConfig())


def test_without_the_package_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    with pytest.raises(ValueError, match=r"needs the extra: pip install 'musicrl\[aesthetics\]'"):
        load_aesthetics(AestheticsConfig(model=f"path:{folder}"))


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown axis 'QP' of aesthetics"):
        AestheticsConfig(axes={"QP": 1.0})
    with pytest.raises(ValueError, match="at least one axis needs a share above 0"):
        AestheticsConfig(axes={"PQ": 0.0})
    with pytest.raises(ValueError, match="aesthetics is set, but 'aesthetics' has no weight"):
        RewardConfig(aesthetics=AestheticsConfig(model="path:here"))


def test_a_process_with_another_working_directory_finds_the_files() -> None:
    config = RewardConfig(
        weights={"aesthetics": 1.0, "preference": 1.0},
        aesthetics=AestheticsConfig(model="path:models/aes"),
        preference_file=Path("reward/preference.safetensors"),
    )
    found = config.with_absolute_paths()
    assert found.aesthetics.model == f"path:{Path.cwd() / 'models/aes'}"
    assert found.preference_file == Path.cwd() / "reward/preference.safetensors"
    assert AestheticsConfig().with_absolute_paths() == AestheticsConfig()
