"""The settings of all stages of a world; its defaults are those of the shipped files, preset `tiny`.

The one place that names every stage: pretraining and preference learning do not know each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from musicrl.preference.fit import FitConfig
from musicrl.preference.pool import SampledClipsConfig
from musicrl.preference.simulate import SimulateConfig
from musicrl.preference.training import TrainingConfig
from musicrl.pretrain.calibration import CalibrationStageConfig
from musicrl.pretrain.codec import CodecStageConfig
from musicrl.pretrain.embedder import EmbedderStageConfig, JudgeStageConfig
from musicrl.pretrain.policy import PolicyStageConfig
from musicrl.pretrain.prompts import PromptStageConfig
from musicrl.pretrain.quality import QualityJudgeStageConfig, QualityStageConfig
from musicrl.pretrain.semantic import SemanticStageConfig
from musicrl.pretrain.world import WorldConfig

COMPARISONS = "simulated.parquet"
OWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "world": ("world",),
        "embedder": ("world", "weights", "kind"),
        "judge": ("world", "weights", "kind"),
        "policy": ("world", "weights", "name"),
        "policy_noisy": ("world", "weights", "name"),
        "quality": ("world", "weights", "name"),
        "quality_judge": ("world", "weights", "name"),
        "preference_data": ("out", "pool", "json"),
        "preference": ("files", "out", "weights", "start", "simulation", "json"),
    }
)
"""Settings of stages that follow from `out`; ("world", "weights") where a stage is not named."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Build a world: every stage in order, but for those that are finished."""

    preset: Literal["tiny"] = "tiny"
    """Settings that stand nowhere else: those of the shipped tiny world."""
    out: Path = Path("worlds/tiny")
    """Folder of the world: clips, weights/, stages/ (what is finished), report.md, report.json."""
    json: Path | None = None
    """File that receives the report too."""
    world: WorldConfig = field(default_factory=WorldConfig)
    prompts: PromptStageConfig = field(default_factory=PromptStageConfig)
    codec: CodecStageConfig = field(default_factory=CodecStageConfig)
    embedder: EmbedderStageConfig = field(default_factory=EmbedderStageConfig)
    judge: JudgeStageConfig = field(default_factory=JudgeStageConfig)
    calibration: CalibrationStageConfig = field(default_factory=CalibrationStageConfig)
    semantic: SemanticStageConfig = field(default_factory=SemanticStageConfig)
    policy: PolicyStageConfig = field(default_factory=PolicyStageConfig)
    policy_noisy: PolicyStageConfig = field(
        default_factory=lambda: PolicyStageConfig(name="policy-noisy", misdescribed=0.4)
    )
    quality: QualityStageConfig = field(default_factory=QualityStageConfig)
    quality_judge: QualityJudgeStageConfig = field(default_factory=QualityJudgeStageConfig)
    preference_data: SimulateConfig = field(
        default_factory=lambda: SimulateConfig(
            out=Path(COMPARISONS),
            pairs=240_000,
            clips=SampledClipsConfig(
                policies=(Path("policy-noisy.safetensors"),),
                prompts=2000,
                clips_per_prompt=12,
                clip_seconds=2.0,
                prompts_per_chunk=16,
            ),
        )
    )
    """Comparisons by SIMULATED raters."""
    preference: FitConfig = field(
        default_factory=lambda: FitConfig(
            policy=Path("policy.safetensors"),
            training=TrainingConfig(
                steps=1000, batch_prompts=8, evaluate_every=100, weight_decay=0.05
            ),
        )
    )

    def __post_init__(self) -> None:
        for part in fields(self):
            if part.name in {"preset", "out", "json"}:
                continue
            _refuse_own(part, getattr(self, part.name))
        if self.preference_data.clips.weights is not None:
            raise ValueError("preference_data.clips.weights follows from out: leave it out")


def _refuse_own(part: Field[Any], config: object) -> None:
    """Raise ValueError naming a setting of a stage that follows from `out` and is given."""
    assert part.default_factory is not MISSING
    usual = part.default_factory()
    for name in OWN.get(part.name, ("world", "weights")):
        if getattr(config, name) != getattr(usual, name):
            raise ValueError(f"{part.name}.{name} follows from out: leave it out")
