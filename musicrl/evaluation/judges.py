"""Judges: scores of clips by models that no policy is ever rewarded with.

One is a published music tagger, asked whether it hears what the caption asks for rather than the
alternatives; another a joint embedding of other seed and front end than the rewarded one; a third
predicts opinions of quality, likewise beside the rewarded predictor; those of `music.py` measure the
sound. All have the signature of a reward, and none is in its table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.audio import resample
from musicrl.embedders.base import JointEmbedder
from musicrl.embedders.mulan import MuLan
from musicrl.evaluation.ears import Ears, embed_windows
from musicrl.evaluation.music import Clipping, OnsetTempo, PitchVariety, Sounding
from musicrl.evaluation.musicnn import SAMPLE_RATE, TAGS, Tagger
from musicrl.prompts import attribute
from musicrl.rewards.base import Reward
from musicrl.rewards.quality import QUALITY_JUDGE_FILE, load_quality
from musicrl.rewards.text import TextAdherence
from musicrl.types import Clips, Prompt

EMBEDDING, TAGGER, QUALITY = "embedding", "tagger", "quality"
"""Names of judges."""
NO_QUALITY = (
    f"no {QUALITY_JUDGE_FILE} in the world's folder: `musicrl pretrain quality-judge` makes it"
)
CALIBRATION = "calibration.json"
"""File in a world's folder: mean and deviation of the tagger's log-odds on its real clips."""
TAGS_OF: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "instrument": {
        "piano": ("piano",),
        "harpsichord": ("harpsichord",),
        "acoustic guitar": ("guitar",),
        "electric guitar": ("guitar", "rock"),
        "cello": ("cello", "strings"),
        "harp": ("harp",),
        "choir": ("choir", "choral"),
        "flute": ("flute",),
    },
    "tempo": {"slow": ("slow",), "fast": ("fast",)},
    "loudness": {"soft": ("soft", "quiet"), "loud": ("loud",)},
}
"""Tags implied by the values of an attribute. A value that is not listed (an organ, a moderate
tempo) has no tag among the 50, and clips that ask for it have no score."""


class TagHearing:
    """What the tagger hears of clips. The latest ones are remembered, so that several judges hear
    them once."""

    def __init__(self, tagger: Tagger, *, batch: int = 16) -> None:
        self._tagger = tagger
        self._batch = batch
        self._latest: tuple[Clips, NDArray[np.float64], NDArray[np.float64]] | None = None

    def log_odds(self, clips: Clips) -> NDArray[np.float64]:
        """Of the tags, float64 [B, 50]; NaN for clips that are not finite."""
        return self._hear(clips)[0]

    def features(self, clips: Clips) -> NDArray[np.float64]:
        """The tagger's embedding of the clips, float64 [B, 200]; NaN as above."""
        return self._hear(clips)[1]

    def _hear(self, clips: Clips) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._latest is None or self._latest[0] is not clips:
            audio = resample(clips.audio, clips.sample_rate, SAMPLE_RATE)
            finite = np.isfinite(audio).all(1, keepdims=True)
            heard = torch.tensor(np.where(finite, audio, 0))
            parts = [self._tagger.hear(part) for part in heard.split(self._batch)]
            tags = np.concatenate([_log_odds(tags) for tags, _ in parts])
            features = torch.cat([units for _, units in parts]).double().numpy()
            self._latest = clips, np.where(finite, tags, np.nan), np.where(finite, features, np.nan)
        return self._latest[1:]


class TagScores:
    """Standard scores of the tags of clips: log-odds against their spread over real clips."""

    def __init__(self, hearing: TagHearing, calibration: Path) -> None:
        self.hearing = hearing
        self._mean, self._deviation = read_calibration(calibration)

    def __call__(self, clips: Clips) -> NDArray[np.float64]:
        """float64 [B, 50]; NaN for clips that are not finite."""
        return (self.hearing.log_odds(clips) - self._mean) / self._deviation


class TagJudge:
    """Does the tagger hear what was asked for rather than its alternatives?

    For each attribute that the caption asks for: the mean standard score of the tags it implies,
    minus the mean over the tags of the attribute's other values; then the mean over `attributes`.
    0 is indifference; NaN where the caption implies no tag.
    """

    def __init__(self, scores: TagScores, *, name: str, attributes: Sequence[str]) -> None:
        self.name = name
        self._scores = scores
        self._attributes = tuple(attributes)

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B]."""
        scores = self._scores(clips)
        pairs = zip(prompts, scores, strict=True)
        return np.array([self._adherence(prompt, row) for prompt, row in pairs], np.float32)

    def _adherence(self, prompt: Prompt, scores: NDArray[np.float64]) -> float:
        asked = [(name, asked_value(prompt, name)) for name in self._attributes]
        found = [contrast(scores, name, value) for name, value in asked if value is not None]
        return float(np.mean(found)) if found else float("nan")


class TopInstrument:
    """1 where the instrument that the caption asks for is the one that the tagger hears, of those
    that have a tag: the highest mean standard score; else 0, so that the mean is their share.

    NaN where the caption asks for none of them, or the clip is not finite. Chance is 1 in 8.
    """

    name = "instrument-top1"

    def __init__(self, scores: TagScores) -> None:
        self._scores = scores

    def __call__(self, prompts: Sequence[Prompt], clips: Clips) -> NDArray[np.float32]:
        """float32 [B]."""
        pairs = zip(prompts, self._scores(clips), strict=True)
        return np.array([self._is_heard(prompt, row) for prompt, row in pairs], np.float32)

    def _is_heard(self, prompt: Prompt, scores: NDArray[np.float64]) -> float:
        asked = asked_value(prompt, "instrument")
        if asked is None or not np.isfinite(scores).all():
            return float("nan")
        heard = {value: _mean(scores, set(tags)) for value, tags in TAGS_OF["instrument"].items()}
        return float(max(heard, key=lambda value: heard[value]) == asked)


def contrast(scores: NDArray[np.float64], name: str, value: str) -> float:
    """Mean of scores [50] over the tags of `value`, minus the mean over the attribute's others."""
    values = TAGS_OF[name]
    own = set(values[value])
    others = {tag for tags in values.values() for tag in tags} - own
    return _mean(scores, own) - _mean(scores, others)


def asked_value(prompt: Prompt, name: str) -> str | None:
    """The value of an attribute that a prompt asks for and tags can tell; a prompt without known
    attributes is searched for the value's own words."""
    values = TAGS_OF[name]
    if prompt.attributes:
        known = attribute(prompt, name)
        return known if known in values else None
    said = [value for value in values if re.search(rf"\b{value}\b", prompt.text.lower())]
    return said[0] if len(said) == 1 else None


def load_ears(folder: Path) -> Ears:
    """Those of a tiny world's folder.

    Raises FileNotFoundError or ValueError naming the file when one cannot be read.
    """
    tags = TagScores(TagHearing(Tagger()), folder / CALIBRATION)
    model = MuLan.from_file(folder / "judge.safetensors", kind="judge")
    has_quality = (folder / QUALITY_JUDGE_FILE).is_file()
    quality = (load_quality(folder, QUALITY_JUDGE_FILE),) if has_quality else ()
    return Ears(
        judges=(embedding_judge(model), *tag_judges(tags), *quality, *unlearned_judges()),
        embedders={"tagger": tags.hearing.features, "judge": partial(embed_windows, model)},
        left_out={} if has_quality else {f"judge/{QUALITY}": NO_QUALITY},
    )


def embedding_judge(model: JointEmbedder) -> Reward:
    """A joint embedding other than the rewarded one."""
    return TextAdherence(model, name=EMBEDDING)


def tag_judges(scores: TagScores) -> tuple[Reward, ...]:
    """The tagger asked for all attributes, for each, and for the instrument that it hears most."""
    return (
        TagJudge(scores, name=TAGGER, attributes=tuple(TAGS_OF)),
        *(TagJudge(scores, name=f"{TAGGER}-{name}", attributes=(name,)) for name in TAGS_OF),
        TopInstrument(scores),
    )


def unlearned_judges() -> tuple[Reward, ...]:
    """The judges that need no model."""
    return OnsetTempo(), PitchVariety(), Sounding(), Clipping()


def tag_log_odds(tagger: Tagger, audio: Tensor) -> NDArray[np.float64]:
    """Log-odds float64 [B, 50] of `TAGS` in audio float32 [B, N] at 16 kHz."""
    return _log_odds(tagger(audio))


def _log_odds(probabilities: Tensor) -> NDArray[np.float64]:
    log_odds: NDArray[np.float64] = torch.logit(probabilities.double(), eps=1e-9).numpy()
    return log_odds


def write_calibration(
    path: Path, mean: NDArray[np.float64], deviation: NDArray[np.float64], *, clips: int
) -> None:
    """Mean and standard deviation [50] of the log-odds of `TAGS` over so many real clips."""
    pairs = zip(TAGS, mean.round(4).tolist(), deviation.round(4).tolist(), strict=True)
    tags = {tag: [centre, spread] for tag, centre, spread in pairs}
    partial = path.with_suffix(".partial")
    partial.write_text(
        json.dumps({"clips": clips, "tags": tags}, indent=1) + "\n", encoding="utf-8"
    )
    partial.replace(path)


def read_calibration(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation, float64 [50] each, of the log-odds of `TAGS` on real clips.

    Raises FileNotFoundError when the file is missing, ValueError when it is of another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: `musicrl pretrain calibration` writes it"
        )
    try:
        tags = json.loads(path.read_text(encoding="utf-8"))["tags"]
        table = np.array([tags[tag] for tag in TAGS], np.float64).reshape(len(TAGS), 2)
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"{path} holds no mean and deviation of every tag: {fault}") from fault
    return table[:, 0], table[:, 1]


def _mean(scores: NDArray[np.float64], tags: set[str]) -> float:
    return float(scores[[TAGS.index(tag) for tag in sorted(tags)]].mean())
