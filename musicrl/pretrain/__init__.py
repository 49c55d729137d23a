"""Building a world: the stages of `musicrl pretrain`, in the order in which they need each other.

Each stage is a frozen configuration and a function of it that writes its file atomically, resumes
what was stopped and returns its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from musicrl.pretrain.calibration import CalibrationStageConfig, calibrate_tagger
from musicrl.pretrain.codec import CodecStageConfig, fit_codec
from musicrl.pretrain.corpus import CorpusConfig, build_corpus
from musicrl.pretrain.cutting import RecordingsStageConfig, cut_recordings
from musicrl.pretrain.embedder import EmbedderStageConfig, JudgeStageConfig, train_embedder
from musicrl.pretrain.fine import FineStageConfig, train_fine
from musicrl.pretrain.policy import PolicyStageConfig, train_policy
from musicrl.pretrain.prompts import PromptStageConfig, write_prompts
from musicrl.pretrain.quality import QualityJudgeStageConfig, QualityStageConfig, train_quality
from musicrl.pretrain.semantic import SemanticStageConfig, fit_semantic
from musicrl.pretrain.soundstream import SoundStreamStageConfig, train_soundstream
from musicrl.pretrain.world import WorldConfig, build_world

STAGES: Mapping[str, tuple[type[Any], Callable[[Any], dict[str, float]]]] = {
    "corpus": (CorpusConfig, build_corpus),
    "world": (WorldConfig, build_world),
    "recordings": (RecordingsStageConfig, cut_recordings),
    "prompts": (PromptStageConfig, write_prompts),
    "codec": (CodecStageConfig, fit_codec),
    "embedder": (EmbedderStageConfig, train_embedder),
    "judge": (JudgeStageConfig, train_embedder),
    "calibration": (CalibrationStageConfig, calibrate_tagger),
    "semantic": (SemanticStageConfig, fit_semantic),
    "policy": (PolicyStageConfig, train_policy),
    "quality": (QualityStageConfig, train_quality),
    "quality-judge": (QualityJudgeStageConfig, train_quality),
    "fine": (FineStageConfig, train_fine),
    "soundstream": (SoundStreamStageConfig, train_soundstream),
}
"""Stage name to (configuration, function). `recordings` makes clips of other audio, in place of
`world`; `corpus` is needed only to rebuild the note table,
`fine` and `soundstream` only for a world that plays all levels, or through SoundStream."""
DISTRIBUTED = ("embedder", "judge", "policy", "quality", "quality-judge", "fine", "soundstream")
"""Stages that several processes may train together, as torchrun starts them."""
