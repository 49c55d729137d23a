"""`musicrl plan`: what a cluster would do with a run, before anybody pays for it.

    costs of tasks ─► the real controller on simulated actors ─► a forecast for every size ─► advice
    (a trace, or a short run here)

The forecast is of the training loop; the evaluations before and after it are not in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from cluster.connection import connected
from cluster.placement import Misfit, requests_of
from cluster.plan_config import PlanConfig
from cluster.session import address_of
from cluster.simulation.costs import Costs, costs_of, read_trace
from cluster.simulation.fleet import Machine
from cluster.simulation.gathering import measure_gathering
from cluster.simulation.measure import measure_costs, measure_update
from cluster.simulation.reducing import measure_reducing
from cluster.simulation.run import Forecast, forecast
from musicrl.config import TrainConfig
from musicrl.memory import GIGABYTE, Need, check_fit, needs_of
from musicrl.textfile import write_text

ENOUGH = 0.95
"""Of the best throughput: what more actors than that gain is not advised to pay for (this
project's choice)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A size of the cluster and what is foretold of it."""

    config: TrainConfig
    forecast: Forecast | None
    """None where the machines have no room."""
    measured: float | None = None
    """Seconds of a real update."""

    @property
    def error(self) -> float | None:
        """Of the forecast, as a share of what was measured."""
        if self.forecast is None or self.measured is None:
            return None
        return self.forecast.seconds_per_update / self.measured - 1.0

    def to_json(self) -> dict[str, Any]:
        cluster = self.config.cluster
        size = {
            "num_samplers": cluster.num_samplers,
            "num_scorers": cluster.num_scorers,
            "num_learners": cluster.num_learners,
            "max_lag": cluster.max_lag,
        }
        found = None if self.forecast is None else asdict(self.forecast)
        return {**size, "forecast": found, "measured": self.measured, "error": self.error}


def plan(config: PlanConfig, console: Console | None = None) -> dict[str, Any]:
    """Say what memory the run needs, forecast every size, print tables and the advice, and write the
    JSON file if asked.

    Raises ValueError naming the actor that `gpu_gb` cannot hold.
    """
    console = console or Console()
    report = plan_memory(config, console)
    if not config.memory_only:
        report |= plan_time(config, console)
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def plan_memory(config: PlanConfig, console: Console) -> dict[str, Any]:
    """The memory of a learner and of a sampler."""
    needs = needs_of(config.train)
    console.print(memory_table(needs))
    if config.gpu_gb:
        check_fit(needs, gpu_gigabytes=config.gpu_gb)
    return {"memory": [{**asdict(need), "total": need.total} for need in needs]}


def memory_table(needs: Sequence[Need]) -> Table:
    table = Table(title="memory of one actor, GB", box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    for need in needs:
        where = f"{need.gpus:g} GPU" if need.gpus else "host"
        table.add_column(f"{need.role} ({where})", justify="right")
    names = dict.fromkeys(name for need in needs for name in need.parts)
    for name in names:
        amounts = (need.parts.get(name, 0.0) / GIGABYTE for need in needs)
        table.add_row(name, *(f"{amount:.2f}" if amount else "" for amount in amounts))
    table.add_row("together", *(f"{need.total / GIGABYTE:.2f}" for need in needs))
    return table


def plan_time(config: PlanConfig, console: Console) -> dict[str, Any]:
    """The forecasts and the advice."""
    with connected(widest(config).cluster) if needs_ray(config) else nullcontext():
        costs = find_costs(config)
        rows = [forecast_row(config, size, costs) for size in config.grid()]
        if config.check:
            rows = [replace(row, measured=measured_seconds(config, row)) for row in rows]
    console.print(to_table(rows))
    best = advise(rows)
    console.print(advice(best, rows))
    return {
        "costs": costs.to_json(),
        "rows": [row.to_json() for row in rows],
        "advice": best and best.to_json(),
    }


def needs_ray(config: PlanConfig) -> bool:
    """Whether anything is run for real, or a running cluster is asked for its machines."""
    is_asked = not config.nodes and address_of(config.train.cluster) is not None
    return config.check or config.costs is None or is_asked


def widest(config: PlanConfig) -> TrainConfig:
    """The size with the most actors: a local Ray has room for it, and so for all."""
    return max(config.grid(), key=lambda size: len(requests_of(size.cluster)))


def find_costs(config: PlanConfig) -> Costs:
    """From the trace that is named, or measured; with sums over ranks where a size has several
    learners. Raises FileNotFoundError or ValueError."""
    costs = find_task_costs(config)
    clusters = [size.cluster for size in config.grid()]
    if all(cluster.num_learners == 1 for cluster in clusters):
        return costs
    is_sharded = any(cluster.learner_sharding == "full" for cluster in clusters)
    gathering = measure_gathering() if is_sharded else None
    return replace(costs, reducing=measure_reducing(), gathering=gathering)


def find_task_costs(config: PlanConfig) -> Costs:
    if config.costs is not None:
        try:
            return replace(costs_of(read_trace(config.costs)), contention=config.contention)
        except ValueError as fault:
            raise ValueError(f"{config.costs}: {fault}") from fault
    return measure_costs(
        config.train, machines_of(config, config.train), updates=config.measured_updates
    )


def forecast_row(config: PlanConfig, size: TrainConfig, costs: Costs) -> Row:
    try:
        found = forecast(size, machines_of(config, size), costs, updates=config.updates)
    except Misfit:
        return Row(config=size, forecast=None)
    return Row(config=size, forecast=found)


def measured_seconds(config: PlanConfig, row: Row) -> float | None:
    """Seconds of a real update at a size that has room."""
    if row.forecast is None:
        return None
    return measure_update(row.config, updates=config.measured_updates)


def machines_of(config: PlanConfig, size: TrainConfig) -> list[Machine]:
    """The machines to plan for. A local Ray has as many slots as the actors ask for, whatever the
    cores are."""
    if config.nodes:
        cores = float(config.node_cores)
        return [Machine(cores=cores, slots=cores, gpus=config.node_gpus)] * config.nodes
    if address_of(size.cluster) is None:
        cores, asked = os.cpu_count() or 1, sum(r.cpus for r in requests_of(size.cluster))
        return [Machine(cores=cores, slots=max(cores, asked))]
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [to_machine(node["Resources"]) for node in alive]


def to_machine(resources: dict[str, float]) -> Machine:
    """A node of a cluster that is running."""
    cores = resources.get("CPU", 0.0)
    return Machine(cores=cores, slots=cores, gpus=int(resources.get("GPU", 0.0)))


def advise(rows: Sequence[Row]) -> Row | None:
    """The fewest actors that reach almost the best throughput, and of these the least lag."""
    found = [row for row in rows if row.forecast is not None]
    if not found:
        return None
    best = max(_throughput(row) for row in found)
    enough = [row for row in found if _throughput(row) >= ENOUGH * best]
    return min(enough, key=lambda row: (_actors(row), row.config.cluster.max_lag))


def advice(best: Row | None, rows: Sequence[Row]) -> str:
    """One sentence."""
    if best is None or best.forecast is None:
        return "no size has room on these machines"
    cluster, found = best.config.cluster, best.forecast
    most = max(_throughput(row) for row in rows if row.forecast is not None)
    return (
        f"advised: {cluster.num_samplers} samplers and {cluster.num_scorers} scorers : "
        f"{cluster.num_learners} learner{'s' * (cluster.num_learners > 1)} at max_lag {cluster.max_lag}: "
        f"{found.updates_per_minute:.1f} updates a minute, where the best here is {most:.1f}; "
        f"a learner works {found.utilisation['learner']:.0%} of the time"
    )


def to_table(rows: Sequence[Row]) -> Table:
    title = "forecast (samplers/scorers/learners, and % of the time that they are busy)"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    is_checked = any(row.measured is not None for row in rows)
    for name in (*COLUMNS, *(CHECKS if is_checked else ())):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_size_cells(row), *_cells(row), *(_check_cells(row) if is_checked else ()))
    return table


COLUMNS = ("actors", "max_lag", "s/update", "samples/s", "busy", "mean lag")
CHECKS = ("measured", "error")


def _size_cells(row: Row) -> list[str]:
    cluster = row.config.cluster
    counts = cluster.num_samplers, cluster.num_scorers, cluster.num_learners
    return ["/".join(map(str, counts)), str(cluster.max_lag)]


def _cells(row: Row) -> list[str]:
    found = row.forecast
    if found is None:
        return ["no room", "", "", ""]
    shares = [f"{100 * found.utilisation[role]:.0f}" for role in ("sampler", "scorer", "learner")]
    return [
        f"{found.seconds_per_update:.3f}",
        f"{found.samples_per_second:.1f}",
        "/".join(shares),
        f"{found.mean_lag:.2f}",
    ]


def _check_cells(row: Row) -> list[str]:
    if row.measured is None or row.error is None:
        return ["", ""]
    return [f"{row.measured:.3f}", f"{row.error:+.1%}"]


def _throughput(row: Row) -> float:
    assert row.forecast is not None
    return row.forecast.updates_per_minute


def _actors(row: Row) -> int:
    cluster = row.config.cluster
    return cluster.num_samplers + cluster.num_scorers + cluster.num_learners
