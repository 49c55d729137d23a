"""The settings of `musicrl reproduce`. It runs nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from musicrl.reproduction.panel import PanelConfig
from musicrl.reproduction.recipes import ScaleConfig, check_models


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Train the paper's models in the tiny world, one from another, and compare them all."""

    out: Path = Path("runs/reproduction")
    """Folder of the runs and of the report; what was interrupted or done there is continued."""
    seeds: tuple[int, ...] = (0,)
    """Of training: each trains all models."""
    models: tuple[str, ...] = ("R", "U", "RU")
    """Of MuLan, Quality, R, U, RU and joint; RU after R, from which it starts."""
    budget_minutes: float | None = None
    """Time of one seed, from which the updates are chosen by timing a few (none: scale.updates)."""
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    base: Path = Path("policy-noisy.safetensors")
    """Policy that all start from: a file, or a name in the world's folder."""
    preference_file: Path | None = None
    """Preference model of U (none: preference.safetensors in the world's folder)."""
    prompts: int = 160
    """Held-out prompts that every model is measured on."""
    audio_prompts: int = 4
    """Of these, the ones to listen to in the report."""
    panel: PanelConfig = field(default_factory=PanelConfig)
    solo: bool = False
    """Train in this process, without Ray."""

    def __post_init__(self) -> None:
        check_models(self.models)
        if not self.models:
            raise ValueError("models names none")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different numbers from 0 on, got {self.seeds}")
        if self.budget_minutes is not None and self.scale.updates is not None:
            raise ValueError("budget_minutes chooses scale.updates: give one of them")
        if self.budget_minutes is not None and not self.budget_minutes > 0:
            raise ValueError(f"budget_minutes must be above 0, got {self.budget_minutes}")
        if not 1 <= self.audio_prompts <= self.prompts:
            raise ValueError(
                f"audio_prompts must be 1 to {self.prompts}, the prompts, got {self.audio_prompts}"
            )
        if self.prompts < 2:
            raise ValueError(f"prompts must be 2 or more, got {self.prompts}")

    def told(self) -> dict[str, Any]:
        """What the report says of the settings."""
        rater = asdict(self.panel.rater)
        return {
            "seeds": list(self.seeds),
            "models": list(self.models),
            "base": self.base.name,
            "held-out prompts": self.prompts,
            "simulated raters of a pair": self.panel.raters_per_pair,
            **{f"simulated raters: {name}": value for name, value in rater.items()},
        }
