"""Figures as gauges, and the dashboard that draws them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.prometheus import Gauges, metric_name
from cluster.session import train
from musicrl.config import TrainConfig

Configure = Callable[..., TrainConfig]
DASHBOARD = Path(__file__).parents[2] / "cluster" / "deploy" / "grafana.json"
PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
RAYS_OWN = {"ray_object_store_memory", "ray_node_gpus_utilization"}


class Kept:
    """A gauge that remembers."""

    def __init__(self) -> None:
        self.values: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values.append((value, tags))


def test_the_newest_figure_of_a_run_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Kept] = {}

    def gauge(name: str, *, description: str, tag_keys: tuple[str, ...]) -> Kept:
        assert tag_keys == ("run",)
        return made.setdefault(name, Kept())

    monkeypatch.setattr("cluster.prometheus.Gauge", gauge)
    gauges = Gauges(Path("runs/tiny"))
    gauges(3, {"reward/text": 0.5})
    gauges(4, {"reward/text": 0.75})
    run = {"run": "tiny"}
    assert made["musicrl_reward_text"].values == [(0.5, run), (0.75, run)]
    assert made["musicrl_step"].values == [(3.0, run), (4.0, run)]


def documented() -> list[str]:
    """Patterns of the figures in the page's table; `/x` continues the name before it."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    found: list[str] = []
    for name in (name for row in rows for name in re.findall("`([^`]+)`", row.split(" | ")[0])):
        found.append(found[-1].rsplit("/", 1)[0] + name if name.startswith("/") else name)
    return found


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_page_names_what_a_run_exports_and_the_dashboard_asks_for_nothing_else(
    configure: Configure,
) -> None:
    config = configure(iterations=2, cluster={"num_samplers": 1})
    train(config)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    named = documented()
    for name in events.Tags()["scalars"]:
        assert any(fnmatchcase(name, pattern) for pattern in named), name
    assert set(events.Tags()["histograms"]) <= set(named)
    exported = {f"ray_{metric_name(name)}" for name in events.Tags()["scalars"]}
    exported |= RAYS_OWN | {"ray_musicrl_step"}
    for query in queries():
        patterns = re.findall(r'__name__=~"([^"]+)"', query)
        names = [] if patterns else re.findall(r"\bray_\w+", query)
        assert names or patterns
        assert set(names) <= exported, query
        for pattern in patterns:
            assert any(re.fullmatch(pattern, name) for name in exported), query
