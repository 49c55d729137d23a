"""The tagger against numbers of another implementation of the same network and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from musicrl.evaluation.musicnn import TAGS, WEIGHTS, Affine, LogMel, Tagger, slaney_filters

GOLDEN = {
    6.0: {
        "flute": 0.533391,
        "slow": 0.259939,
        "ambient": 0.206225,
        "quiet": 0.068056,
        "indian": 0.061745,
        "no vocal": 0.036758,
    },
    2.0: {
        "flute": 0.25047,
        "slow": 0.189091,
        "guitar": 0.108883,
        "drums": 0.10217,
        "synth": 0.048937,
    },
}
SUMS = {6.0: 1.502392, 2.0: 1.645452}


def signal(seconds: float) -> torch.Tensor:
    """Two tones, one plucked twice a second, and a repeatable noise."""
    n = np.arange(int(16_000 * seconds))
    t = n / 16_000
    tone = 0.3 * np.sin(2 * np.pi * 440 * t) * np.exp(-3 * (t % 0.5))
    noise = 0.02 * ((n * n) % 997 / 997 - 0.5)
    return torch.from_numpy(tone + 0.1 * np.sin(2 * np.pi * 660 * t) + noise).float()[None]


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger()


@pytest.mark.parametrize("seconds", [6.0, 2.0])
def test_tag_probabilities_are_those_of_the_reference(tagger: Tagger, seconds: float) -> None:
    (tags,) = tagger(signal(seconds))
    for tag, probability in GOLDEN[seconds].items():
        assert float(tags[TAGS.index(tag)]) == pytest.approx(probability, abs=1e-4)
    assert float(tags.sum()) == pytest.approx(SUMS[seconds], abs=1e-3)


def test_the_embedding_is_the_last_layer_but_one(tagger: Tagger) -> None:
    """Of one patch the last layer makes the tags again; of two it is the mean."""
    tags, units = tagger.hear(signal(3.0))
    torch.testing.assert_close(tagger.network.tag(units).sigmoid(), tags)
    assert float(units.min()) == 0  # after a ReLU
    both = tagger.front(signal(6.0)).unfold(1, 187, 187).transpose(2, 3)[0]
    patches = torch.stack([tagger.network.embed(patch[None])[0] for patch in both])
    torch.testing.assert_close(tagger.hear(signal(6.0))[1][0], patches.mean(0))


def test_log_mel_is_that_of_the_reference() -> None:
    mel = LogMel()(signal(1.0))
    assert mel.shape == (1, 63, 96)
    np.testing.assert_allclose(
        mel[0, 10, [3, 12, 20, 60]], [0.7737, 4.5133, 4.6796, 0.7176], atol=1e-4
    )
    assert float(mel.mean()) == pytest.approx(0.8193, abs=1e-4)


def test_a_clip_does_not_depend_on_its_batch(tagger: Tagger) -> None:
    clip = signal(3.0)
    other = tagger(torch.cat([torch.zeros_like(clip), clip]))[1]
    torch.testing.assert_close(other, tagger(clip)[0])


def test_the_last_incomplete_patch_is_left_out(tagger: Tagger) -> None:
    """187 spectra of 256 samples are the first patch: what follows them is another's."""
    clip = signal(3.5)
    changed = clip.clone()
    changed[:, 187 * 256 + 512 :] = 0.0
    torch.testing.assert_close(tagger(changed), tagger(clip))


def test_filters_have_equal_area_and_linear_edges_below_1_khz() -> None:
    filters = slaney_filters()
    bins = filters.shape[1]
    centre = (filters * np.linspace(0, 8_000, bins)).sum(1) / filters.sum(1)
    areas = filters.sum(1) * 8_000 / (bins - 1)
    np.testing.assert_allclose(areas[40:], 1.0, atol=0.12)  # the narrow ones fall between bins
    assert np.all(np.diff(centre[5:]) > 0)


def test_a_folded_normalisation_is_scale_and_shift_of_channels() -> None:
    layer = Affine(2)
    layer.scale[:], layer.shift[:] = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
    assert layer(torch.ones(1, 2, 1, 1)).flatten().tolist() == [3.0, 2.0]


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Tagger(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:1_000])
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a readable"):
        Tagger(tmp_path / "cut.safetensors")
    tensors = load_file(WEIGHTS)
    del tensors["out.bias"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"less\.safetensors lacks the tensor 'out.bias'"):
        Tagger(tmp_path / "less.safetensors")
