"""The benchmark of staleness budgets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cluster.lag_bench import LagBenchConfig, Timing, bench_lag, to_table
from musicrl.config import TrainConfig
from musicrl.journal import PHASES

Configure = Callable[..., TrainConfig]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_budgets_take_turns_on_one_fleet(configure: Configure, tmp_path: Path) -> None:
    train = configure(cluster={"num_samplers": 1})
    report = bench_lag(
        LagBenchConfig(train=train, updates=2, turns=2, json=tmp_path / "lag.json"),
        Console(file=io.StringIO()),
    )
    assert report == json.loads((tmp_path / "lag.json").read_text())
    synchronous, asynchronous = report["budgets"]
    assert [synchronous["max_lag"], asynchronous["max_lag"]] == [0, 1]
    assert len(synchronous["updates"]) == len(asynchronous["updates"]) == 4
    assert synchronous["lag_histogram"] == {"0": 32}
    assert asynchronous["lag_histogram"]["1"] > 0
    assert not train.out.exists()


def test_speed_is_relative_to_the_first_budget() -> None:
    timings = [
        Timing(
            max_lag=lag,
            wall_seconds=walls,
            phases=dict.fromkeys(PHASES, 1.0),
            lags={lag: 8},
            controller=0.1,
        )
        for lag, walls in ((0, (3.0, 5.0)), (1, (2.0, 2.0)))
    ]
    assert timings[0].mean == 4.0
    assert timings[0].standard_error == 1.0
    shown = io.StringIO()
    Console(file=shown, width=100).print(to_table(timings))
    rows = [line.split() for line in shown.getvalue().splitlines()]
    assert ["│", "wall", "│", "4.00", "±", "1.00", "│", "2.00", "±", "0.00", "│"] in rows
    assert ["│", "speed", "│", "1.00x", "│", "2.00x", "│"] in rows


@pytest.mark.parametrize(
    "settings", [{"updates": 0}, {"turns": 0}, {"lags": ()}, {"lags": (0, -1)}]
)
def test_impossible_benchmarks_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="or more"):
        LagBenchConfig(**settings)  # type: ignore[arg-type]
