"""Forecasts, by hand-computed pipelines, and what `musicrl plan` says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.cli import main
from cluster.plan_config import PlanConfig
from cluster.planning import plan
from cluster.simulation.costs import Costs, costs_of, read_trace
from cluster.simulation.fleet import Machine
from cluster.simulation.measure import fit_contention
from cluster.simulation.run import Forecast, forecast
from cluster.trace import Span, Trace, to_chrome
from musicrl.config import TrainConfig, load_config
from musicrl.textfile import write_text
from tests.cluster.test_controller import Rig

COSTS = Costs(sample=(3.0,), apply=(1.0,), score=(0.5,), learn=(4.0,), save=(2.0,))
ROOMY = [Machine(cores=64, slots=64)]


def configured(*flags: str) -> TrainConfig:
    sizes = ["--rollout.prompts-per-step", "8", "--rollout.prompts-per-chunk", "4"]
    return load_config("tiny", [*sizes, "--checkpoint-every", "1000", *flags])


def foretold(*flags: str, costs: Costs = COSTS, machines: list[Machine] = ROOMY) -> Forecast:
    return forecast(configured(*flags), machines, costs, updates=20)


def test_synchronous_steps_add_up() -> None:
    # Two chunks, one sampler: apply 1, sample 3 + 3, score the last one 0.5, learn 4.
    found = foretold("--cluster.max-lag", "0")
    assert found.seconds_per_update == pytest.approx(11.5)
    assert found.mean_lag == 0
    assert found.utilisation["learner"] == pytest.approx(4 / 11.5)
    assert found.utilisation["sampler"] == pytest.approx(7 / 11.5)
    assert found.samples_per_second == pytest.approx(8 * 16 / 11.5)


def test_two_samplers_halve_the_sampling() -> None:
    # apply + sample 4, then the one scorer scores both, 0.5 each, and learn 4.
    found = foretold("--cluster.max-lag", "0", "--cluster.num-samplers", "2")
    assert found.seconds_per_update == pytest.approx(9.0)


def test_with_lag_the_slower_side_sets_the_pace() -> None:
    slow_sampling = foretold("--cluster.max-lag", "1")
    assert slow_sampling.seconds_per_update == pytest.approx(7.0)
    # A task counts where it ends: over 20 updates, one at the edge may be missing.
    assert slow_sampling.utilisation["sampler"] == pytest.approx(1.0, abs=0.03)
    slow_learning = foretold("--cluster.max-lag", "1", "--cluster.num-samplers", "4")
    assert slow_learning.seconds_per_update == pytest.approx(4.0, abs=0.6)
    assert slow_learning.utilisation["learner"] > 0.85
    assert 0 < slow_learning.mean_lag <= 1


def test_checkpoints_keep_the_learner_busy() -> None:
    seldom = foretold("--cluster.max-lag", "0")
    always = foretold("--cluster.max-lag", "0", "--checkpoint-every", "1")
    # A checkpoint is written while the next step is sampled: it costs nothing here.
    assert always.seconds_per_update == pytest.approx(seldom.seconds_per_update)
    assert always.utilisation["learner"] == pytest.approx(6 / 11.5)


def test_actors_that_share_a_gpu_take_turns() -> None:
    flags = ["--cluster.max-lag", "1", "--cluster.sampler-gpus", "0.5"]
    flags += ["--cluster.learner-gpus", "0.5"]
    shared = foretold(*flags, machines=[Machine(cores=64, slots=64, gpus=1)])
    apart = foretold(*flags, machines=[Machine(cores=64, slots=64, gpus=1)] * 2)
    assert shared.seconds_per_update == pytest.approx(11.0, abs=0.5)
    assert apart.seconds_per_update == pytest.approx(shared.seconds_per_update)
    whole = ["--cluster.max-lag", "1", "--cluster.sampler-gpus", "1"]
    whole += ["--cluster.learner-gpus", "1"]
    own = foretold(*whole, machines=[Machine(cores=64, slots=64, gpus=1)] * 2)
    assert own.seconds_per_update == pytest.approx(7.0)


def test_the_contention_is_found_again() -> None:
    machines = [Machine(cores=2, slots=8)]
    costs = Costs(sample=(3.0,), apply=(0.1,), score=(0.5,), learn=(6.5,), save=(), contention=0.3)
    lagging = configured("--cluster.max-lag", "1")
    wall = forecast(lagging, machines, costs, updates=40).seconds_per_update
    alone = Costs(sample=(3.0,), apply=(0.1,), score=(0.5,), learn=(6.5,), save=())
    found = fit_contention(lagging, machines, alone, seconds_per_update=wall)
    assert found.contention == pytest.approx(0.3, abs=0.01)


def spans() -> list[Span]:
    rig, trace = Rig(iterations=5, samplers=2), Trace(updates=9, path=None)
    with rig.fleet.pending.watched(trace):
        rig.train()
    return trace.spans


def test_costs_come_out_of_a_trace_as_they_went_in(tmp_path: Path) -> None:
    found = spans()
    write_text(tmp_path / "trace.json", json.dumps(to_chrome(found)))
    read = costs_of(read_trace(tmp_path / "trace.json"))
    direct = costs_of(found)
    assert len(direct.sample) == 4 * 3
    for kind in ("sample", "apply", "score", "learn", "save"):
        assert getattr(read, kind) == pytest.approx(getattr(direct, kind), abs=1e-6)


@pytest.mark.parametrize("text", ["{", "[]", '{"traceEvents": [{"ph": "X", "name": "learn"}]}'])
def test_a_foreign_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no trace"):
        read_trace(tmp_path / "x.json")


def planned(folder: Path, **settings: Any) -> dict[str, Any]:
    trace = folder / "trace.json"
    learn = [_span("learn", start, start + 4.0, {"learn": 4.0}) for start in (0.0, 8.0, 16.0)]
    sample = [_span("sample", 5.0, 8.0, {"publish": 0.0, "sample": 3.0, "decode": 0.0})]
    write_text(trace, json.dumps(to_chrome([*learn, *sample, _span("score", 8.0, 8.5, {})])))
    config = PlanConfig(train=configured(), costs=trace, **{"lags": (0, 1), **settings})
    return plan(config, Console(quiet=True))


def _span(kind: str, start: float, end: float, phases: dict[str, float]) -> Span:
    peer = {"learn": "learner", "sample": "sampler 0", "score": "scorer 0"}[kind]
    return Span(kind=kind, peer=peer, doing=kind, start=start, end=end, queued=0.0, phases=phases)


def test_the_advice_is_the_fewest_actors_that_are_fast_enough(tmp_path: Path) -> None:
    report = planned(tmp_path, samplers=(1, 2, 8), nodes=4, node_cores=8)
    best = report["advice"]
    assert (best["num_samplers"], best["max_lag"]) == (2, 1)
    assert len(report["rows"]) == 6
    assert report["costs"]["learn"] == {"seconds": pytest.approx(4.0), "tasks": 2}


def test_a_size_without_room_is_a_row_without_a_forecast(tmp_path: Path) -> None:
    report = planned(tmp_path, samplers=(1, 16), nodes=1, node_cores=4)
    assert [row["forecast"] is None for row in report["rows"]] == [False, True, False, True]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--samplers", "[]"], "samplers names none"),
        (["--nodes", "2"], "node_cores"),
        (["--node-cores", "2"], "nodes names none"),
        (["--contention", "0.1"], "contention goes with costs"),
        (["--costs", "nowhere.json"], "no trace at nowhere.json"),
        (["--lags", "[-1]"], "lags must be 0 or more"),
    ],
)
def test_a_mistake_is_named(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "tiny", *flags]) == 1
    assert named in capsys.readouterr().err
