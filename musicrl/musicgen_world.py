"""A world of a pretrained MusicGen: its decoder is the policy, its EnCodec plays, a joint embedding listens.

    world.yaml        family: musicgen, and the settings below
    prompts.parquet   the prompts of a run (none: the shipped captions)

It is told where checkpoints are; nothing is downloaded unless world.yaml says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.checkpoint import save_tensors
from musicrl.codecs.base import ChannelCodec
from musicrl.codecs.stereo import musicgen_codec
from musicrl.embedders.base import JointEmbedder
from musicrl.embedders.table import load_pretrained
from musicrl.layout import DelayedLayout
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.folder import blaming, licence, locate, read_json
from musicrl.policies.musicgen import KIND, MusicGen, check_family, read_config
from musicrl.settings import build, read_yaml
from musicrl.world import DECODE_CLIPS

WORLD_FILE = "world.yaml"
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MusicGenWorldConfig:
    """What world.yaml says."""

    family: str
    model: str
    """The MusicGen: hub:ID, or path:DIR, from the world's folder on."""
    embedder: str
    """The joint embedding of the reward `text`, a CLAP or a MuQ-MuLan, named as the model."""
    clip_seconds: float = 10.0
    """Length of a whole clip."""
    text_size: int = 64
    """Tokens of the longest text; longer ones are cut."""
    judge: str | None = None
    """Another one, which judges and enters no reward (none: there is no such judge)."""
    prompts: Path | None = None
    """File of the prompts, from the world's folder on (none: prompts.parquet, or, where that is not
    there, the shipped captions)."""
    downloads: bool = False
    """Fetch a checkpoint of the Hub that is not in the local cache."""


@dataclass(frozen=True, kw_only=True)
class MusicGenWorld:
    """The models of one checkpoint and its listener.

    The codec is read by `load`, policy and listener when they are first asked for: what samples
    holds no listener, and what scores no policy.
    """

    folder: Path
    """Where rewards find files of their own."""
    config: MusicGenWorldConfig
    place: Path
    """Of the checkpoint."""
    shape: DelayedConfig
    """Of its decoder, for the clips of this world."""
    codec: ChannelCodec
    policy_file: Path | None = None
    """What is read in place of the checkpoint's decoder."""

    @classmethod
    def load(cls, folder: Path, policy: Path | None = None) -> MusicGenWorld:
        """The world of a folder, with what `policy` holds in place of the checkpoint's decoder.

        Raises FileNotFoundError or ValueError naming the file or the setting at fault, and so do
        `model` and `embedder` when they are read.
        """
        config = read_world(folder)
        place = _find(config.model, folder, config)
        values = _settings(place)
        codec = musicgen_codec(place)
        frames = round(config.clip_seconds * codec.frame_rate)
        if frames < 1:
            path = folder / WORLD_FILE
            raise ValueError(f"{path}: clip_seconds {config.clip_seconds:g} is less than a frame")
        late = codec.num_codebooks // codec.channels - 1
        with blaming(place / "config.json"):
            shape = read_config(values, num_steps=frames + late, text_size=config.text_size)
        world = cls(
            folder=folder, config=config, place=place, shape=shape, codec=codec, policy_file=policy
        )
        world.check()
        return world

    @cached_property
    def model(self) -> MusicGen:
        """The checkpoint's text encoder and decoder."""
        shape = self.shape
        model = MusicGen.load(
            str(self.place), num_steps=shape.num_steps, text_size=shape.condition_levels
        )
        if self.policy_file is not None:
            model.load_policy(self.policy_file)
        model.conditioner([""])  # a folder whose tokeniser cannot be read is refused before a run
        return model

    @cached_property
    def embedder(self) -> JointEmbedder:
        """What listens for the reward `text`."""
        return _listener(_find(self.config.embedder, self.folder, self.config), self.config)

    def check(self) -> None:
        """Raise ValueError naming the sizes where decoder and codec do not fit."""
        pairs = {
            "codebooks": (self.shape.num_codebooks, self.codec.num_codebooks),
            "vocabulary": (self.shape.vocab, self.codec.vocab_size),
        }
        for name, (left, right) in pairs.items():
            if left != right:
                raise ValueError(
                    f"{self.place}: decoder and codec differ in {name}: {left} and {right}"
                )

    @property
    def policy(self) -> DelayedLM:
        return self.model.policy

    @property
    def layout(self) -> DelayedLayout:
        return self.shape.layout

    @property
    def written_levels(self) -> int:
        """All levels of the codec."""
        return self.codec.num_codebooks

    @property
    def licence(self) -> str:
        """Of the checkpoint."""
        return licence(self.place)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.codec.sample_rate

    @property
    def clip_seconds(self) -> float:
        """Length of a whole clip."""
        return (self.shape.num_steps - self.layout.steps_of(0)) / self.codec.frame_rate

    def steps_of(self, seconds: float | None) -> int:
        """Steps of a clip of `seconds` (none: of a whole clip): its frames, and one for each
        codebook that comes late. Raises ValueError when the policy plays no such clip."""
        if seconds is None:
            return self.shape.num_steps
        late, rate = self.layout.steps_of(0), self.codec.frame_rate
        frames = round(seconds * rate) if math.isfinite(seconds) else 0
        longest = self.shape.num_steps - late
        if abs(frames / rate - seconds) > 1e-6 or not 1 <= frames <= longest:
            raise ValueError(
                f"clip_seconds {seconds:g} is not a multiple of {1 / rate:g} up to "
                f"{longest / rate:g}, the clips of this policy"
            )
        return frames + late

    def conditioner(self, texts: Sequence[str]) -> Tensor:
        """Conditions int64 [B, C] of texts."""
        return self.model.conditioner(texts)

    def decode(self, tokens: NDArray[np.int16]) -> NDArray[np.float32]:
        """Token grids [B, S, K] to the mean float32 [B, N] of their channels."""
        mono: NDArray[np.float32] = self.decode_channels(tokens).mean(1)
        return mono

    def decode_channels(self, tokens: NDArray[np.int16]) -> NDArray[np.float32]:
        """Token grids [B, S, K] to audio float32 [B, channels, N]."""
        codes = torch.from_numpy(self.layout.to_codes(tokens).astype(np.int64))
        parts = codes.to(self.codec.device).split(DECODE_CLIPS)
        return torch.cat([self.codec.decode_channels(part) for part in parts]).cpu().numpy()

    def move_players(self, device: torch.device) -> None:
        """Bring decoder and codec to `device`; the embedder stays where it is."""
        self.policy.to(device)
        self.codec.to(device)

    def save_policy(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write what learns, with the licence of what it was learned from."""
        config = {**asdict(self.policy.config), "licence": self.licence}
        save_tensors(path, tensors, kind=KIND, config=config)


def read_world(folder: Path) -> MusicGenWorldConfig:
    """What a folder's world.yaml says. Raises FileNotFoundError or ValueError naming the file."""
    path = folder / WORLD_FILE
    return build(MusicGenWorldConfig, read_yaml(path), origin=str(path))


def read_model_config(folder: Path) -> tuple[Path, DelayedConfig, int]:
    """Where the checkpoint that a world names is, its decoder's shape for the world's clips, and the
    width of its text encoder's states; no weights are read.

    Raises FileNotFoundError or ValueError naming the file or the setting at fault.
    """
    world = read_world(folder)
    place = _find(world.model, folder, world)
    path = place / "config.json"
    values = read_json(path)
    with blaming(path):
        audio, text = values["audio_encoder"], values["text_encoder"]
        hop = math.prod(audio["upsampling_ratios"])
        frames = round(world.clip_seconds * math.ceil(audio["sampling_rate"] / hop))
        config = read_config(values, num_steps=frames, text_size=world.text_size)
        config = replace(config, num_steps=config.layout.steps_of(frames))
        return place, config, text["d_model"]


def load_judge(folder: Path) -> JointEmbedder | None:
    """The joint embedding that a folder's world.yaml names as a judge; none where it names none.

    Raises FileNotFoundError or ValueError naming the file or the setting, also where the judge is
    the model of the reward.
    """
    config = read_world(folder)
    if config.judge is None:
        return None
    place = _find(config.judge, folder, config)
    if place.samefile(_find(config.embedder, folder, config)):
        raise ValueError(
            f"{folder / WORLD_FILE}: judge {config.judge!r} is the embedder of the reward"
        )
    return _listener(place, config)


def _settings(place: Path) -> Mapping[str, Any]:
    """What a MusicGen's config.json says. Raises ValueError for another family's."""
    values = read_json(place / "config.json")
    with blaming(place / "config.json"):
        check_family(values)
    return values


def _listener(place: Path, config: MusicGenWorldConfig) -> JointEmbedder:
    LOG.warning("weights of %s: licence %s", place, licence(place))
    return load_pretrained(place, downloads=config.downloads)


def _find(reference: str, folder: Path, config: MusicGenWorldConfig) -> Path:
    if reference.startswith("hub:"):
        return locate(reference, downloads=config.downloads)
    return locate(str(folder / reference.removeprefix("path:")))
