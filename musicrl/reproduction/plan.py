"""The plan of a reproduction with a budget: its updates, timed once and kept in <out>/plan.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from musicrl.config import ModelConfig
from musicrl.evaluation.judges import load_ears
from musicrl.evaluation.rows import heldout
from musicrl.reproduction.budget import TIMED, TIMED_PROMPTS, affordable_updates, timed
from musicrl.reproduction.config import ReproduceConfig
from musicrl.reproduction.measured import measure
from musicrl.reproduction.recipes import BASE, run_settings, share_of
from musicrl.reproduction.records import Records, digest_of
from musicrl.reproduction.reproduce import Seed, seeds_of
from musicrl.rewards.mix import make_mix
from musicrl.settings import to_tree
from musicrl.solo import Solo
from musicrl.world import World

PLAN = "plan"


def planned(config: ReproduceConfig, say: Callable[[str], None]) -> ReproduceConfig:
    """The settings with the updates that the budget affords; without a budget, as they are.

    Raises ValueError where the budget is too little, or where `out` was planned otherwise.
    """
    if config.budget_minutes is None:
        return config
    records, digest = Records(config.out), _digest(config)
    record = records.read(PLAN)
    if record is not None and record.digest != digest:
        raise ValueError(
            f"{config.out / 'plan.json'} is of other settings: choose another folder with --out"
        )
    if record is None:
        say("timing a few updates of every model")
        updates = _plan(config)
        records.finish(PLAN, digest, updates=updates)
    else:
        updates = int(record.facts["updates"])
    say(f"{updates} updates of R fit into {config.budget_minutes:g} minutes a seed")
    scale = replace(config.scale, updates=updates)
    return replace(config, budget_minutes=None, scale=scale)


def _plan(config: ReproduceConfig) -> int:
    seed = seeds_of(config, lambda _: None)[0]
    costs: dict[float, float] = {}
    for name in config.models:
        share = share_of(name, config.scale)
        costs[share] = costs.get(share, 0.0) + _seconds_of_update(seed, name)
    assert config.budget_minutes is not None
    return affordable_updates(
        60 * config.budget_minutes, update=costs, measuring=_seconds_of_measuring(seed)
    )


def _seconds_of_update(seed: Seed, name: str) -> float:
    """Seconds of one update of a model, here in one process, from the base's weights."""
    settings = run_settings(
        name,
        seed.config.scale,
        model=ModelConfig(weights=seed.config.weights, policy=seed.policy(BASE)),
        preference_file=seed.config.preference_file,
        seed=seed.seed,
        out=seed.folder / PLAN,
    )
    loop = Solo(settings)
    loop.iterate(0)
    return timed(lambda: [loop.iterate(1 + i) for i in range(TIMED)]) / TIMED


def _seconds_of_measuring(seed: Seed) -> float:
    """Seconds of measuring all models, from a few prompts of the base's."""
    config = seed.measuring(BASE)
    world = World.load(seed.world, seed.policy(BASE))
    mix, ears = make_mix(config.reward, world), load_ears(seed.world)
    prompts = heldout(config)[:TIMED_PROMPTS]

    def once() -> None:
        measure(world, prompts, mix, ears, base=world.policy, reference=world.policy, config=config)

    num_models = len(seed.config.models) + 2
    return num_models * timed(once) * config.prompts / len(prompts)


def _digest(config: ReproduceConfig) -> str:
    """Of what decides the plan."""
    tree = to_tree(config)
    names = ("models", "budget_minutes", "scale", "prompts")
    return digest_of({name: tree[name] for name in names})
