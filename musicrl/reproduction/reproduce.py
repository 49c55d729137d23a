"""`musicrl reproduce`: base, R, U and RU trained one after another, then compared in all pairs.

    <out>/seed0/R, U, RU         runs of training
    <out>/seed0/measured/        one file a model: scores, divergences, tokens of its clips
    <out>/seed0/steps/           what is done, under which settings
    <out>/report.md, report.html, report.json, tensorboard/

Every step is skipped where it is done under the same settings, and continued where it was killed.
How a run is trained is handed in, so that nothing here knows of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musicrl.codecs.fine import FINE_FILE
from musicrl.config import ModelConfig, TrainConfig
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.judges import CALIBRATION, load_ears
from musicrl.evaluation.origin import policy_file
from musicrl.evaluation.pitch import StablePitch, has_tracker
from musicrl.evaluation.rows import heldout
from musicrl.reproduction.config import ReproduceConfig
from musicrl.reproduction.findings import CONTROL, SeedFindings
from musicrl.reproduction.measured import Measured, column_of, measure, with_judges
from musicrl.reproduction.panel import Panel, panels_of
from musicrl.reproduction.recipes import BASE, RECIPES, run_settings
from musicrl.reproduction.records import Records, digest_of
from musicrl.rewards.mix import RewardConfig, make_mix
from musicrl.rewards.preference import PREFERENCE_FILE
from musicrl.rewards.quality import QUALITY_FILE, QUALITY_JUDGE_FILE
from musicrl.run import Run
from musicrl.settings import to_tree
from musicrl.types import Prompt
from musicrl.world import SHIPPED, World, find_policy

Train = Callable[[TrainConfig], dict[str, Any]]
"""Trains as the settings say; returns the summary."""
Say = Callable[[str], None]
ALL_REWARDS = {"text": 1.0, "quality": 1.0, "preference": 1.0}
SOUND = ("codec.safetensors", "embedder.safetensors", FINE_FILE)
"""Of a world's folder: what decides how tokens sound and what text adherence is."""
JUDGES = ("judge.safetensors", CALIBRATION, QUALITY_FILE, QUALITY_JUDGE_FILE)
"""What else of it decides a measurement."""
CONTROL_SEED = 1_000_003
"""Added to the seed of the measurement for the control."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop before its end; what is done is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One seed's steps, in its folder."""

    seed: int
    folder: Path
    config: ReproduceConfig
    say: Say

    @property
    def records(self) -> Records:
        return Records(self.folder / "steps")

    @property
    def world(self) -> Path:
        return self.config.weights or SHIPPED

    @property
    def preference(self) -> Path:
        return self.config.preference_file or self.world / PREFERENCE_FILE

    def parts(self, *names: str) -> list[Path]:
        """Those of the named files that the world has."""
        return [file for name in names if (file := self.world / name).is_file()]

    def policy(self, name: str) -> Path:
        """The file of a model that is there."""
        if name in (BASE, CONTROL):
            return find_policy(self.world, self.config.base)
        return policy_file(self.folder / name, self.world)

    def run(self, train: Train) -> SeedFindings:
        """Do what is left to do; what was found.

        Raises Interrupted, and ValueError where the folder holds a model of other settings; before
        anything is trained, FileNotFoundError or ValueError where a reward's model is missing or
        damaged, or where the raters cannot be as configured.
        """
        make_mix(self.measuring(BASE).reward, World.load(self.world, self.policy(BASE)))
        prompts = heldout(self.measuring(BASE))
        models = {name: self.measure(name, prompts) for name in (BASE, CONTROL)}
        self.panels(models)
        for name in self.config.models:
            self.train(name, train)
        models |= {name: self.measure(name, prompts) for name in self.config.models}
        return SeedFindings(
            seed=self.seed, models=models, panels=self.panels(models), updates=self.updates()
        )

    def panels(self, models: Mapping[str, Measured]) -> list[Panel]:
        """Who compares the models. Raises ValueError where no noise gives the wanted agreement."""
        panel = self.config.panel
        return panels_of(models, base=BASE, control=CONTROL, config=panel, seed=self.seed)

    def settings(self, name: str) -> TrainConfig:
        """The settings of a model's run; its start is there already."""
        return run_settings(
            name,
            self.config.scale,
            model=ModelConfig(weights=self.config.weights, policy=self.policy(RECIPES[name].start)),
            preference_file=self.config.preference_file,
            seed=self.seed,
            out=self.folder / name,
        )

    def train(self, name: str, train: Train) -> None:
        """Train a model, or what is left of it."""
        settings = self.settings(name)
        digest = self.digest_of_run(settings)
        record = self.records.read(name)
        if record is not None and record.digest != digest:
            raise ValueError(
                f"{settings.out} holds model {name} of other settings: "
                "choose another folder with --out, or delete that one with its record in steps"
            )
        if record is not None and record.is_done:
            self.say(f"seed {self.seed}: {name} is trained")
            return
        self.records.begin(name, digest)
        is_begun = Run(settings.out).find_checkpoint() is not None
        self.say(f"seed {self.seed}: {'going on with' if is_begun else 'training'} {name}")
        summary = train(replace(settings, resume=is_begun))
        if not summary["finished"] and summary["stopped_by"] is None:
            raise Interrupted
        self.records.finish(name, digest, updates=summary["iterations"])

    def digest_of_run(self, settings: TrainConfig) -> str:
        """Of all that decides a run: not where it is, but what the files hold."""
        tree = to_tree(settings)
        assert settings.model.policy is not None
        files = [settings.model.policy, *self.parts(*SOUND)]
        if "preference" in settings.reward.weights:
            files.append(self.preference)
        if "quality" in settings.reward.weights:
            files.append(self.world / QUALITY_FILE)
        for where in ("out", "resume", "model", "cluster"):
            del tree[where]
        del tree["reward"]["preference_file"]
        return digest_of(tree, *files)

    def measuring(self, name: str) -> EvaluateConfig:
        """How a model is measured; all but the control with the same random numbers."""
        return EvaluateConfig(
            weights=self.config.weights,
            prompts=self.config.prompts,
            seed=self.seed + (CONTROL_SEED if name == CONTROL else 0),
            reward=RewardConfig(weights=ALL_REWARDS, preference_file=self.config.preference_file),
        )

    def measure(self, name: str, prompts: Sequence[Prompt]) -> Measured:
        """Measure a model, unless its file is there; what a judge of today did not hear, it hears."""
        config = self.measuring(name)
        reference = self.policy(RECIPES[name].start if name in RECIPES else BASE)
        key = f"measured-{_file_name(name)}"
        path = self.folder / "measured" / f"{_file_name(name)}.safetensors"
        settings = {"seed": config.seed, "prompts": [prompt.text for prompt in prompts]}
        files = (self.policy(name), reference, self.policy(BASE), self.preference)
        digest = digest_of(settings, *files, *self.parts(*SOUND, *JUDGES))
        if self.records.is_done(key, digest) and path.is_file():
            self.say(f"seed {self.seed}: {name} is measured")
            return self.heard(Measured.from_file(path, prompts), path)
        self.say(f"seed {self.seed}: measuring {name}")
        worlds = [World.load(self.world, self.policy(n)) for n in (name, BASE)]
        is_base = reference == self.policy(BASE)
        measured = measure(
            worlds[0],
            prompts,
            make_mix(config.reward, worlds[1]),
            load_ears(self.world),
            base=worlds[1].policy,
            reference=worlds[1].policy if is_base else World.load(self.world, reference).policy,
            config=config,
        )
        measured.save(path)
        self.records.finish(key, digest)
        return self.heard(measured, path)

    def heard(self, measured: Measured, path: Path) -> Measured:
        """With the judges that there are now, kept in its file."""
        judges = load_ears(self.world).judges + ((StablePitch(),) if has_tracker() else ())
        missing = [j for j in judges if column_of(j) not in measured.result.columns]
        if not missing:
            return measured
        self.say(f"seed {self.seed}: hearing {path.stem}: {', '.join(j.name for j in missing)}")
        found = with_judges(measured, World.load(self.world, self.policy(BASE)), missing)
        found.save(path)
        return found

    def updates(self) -> dict[str, int]:
        """Updates that every trained model had."""
        records = {name: self.records.read(name) for name in self.config.models}
        return {name: int(r.facts["updates"]) for name, r in records.items() if r is not None}


def seeds_of(config: ReproduceConfig, say: Say) -> list[Seed]:
    return [
        Seed(seed=seed, folder=config.out / f"seed{seed}", config=config, say=say)
        for seed in config.seeds
    ]


def _file_name(name: str) -> str:
    return "control" if name == CONTROL else name
