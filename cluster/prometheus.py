"""Prometheus: the figures of every update as gauges of Ray, which each node exports.

`reward/mean` becomes `ray_musicrl_reward_mean`, with the run's folder as the label `run`. Where a
cluster has no metrics agent, as in a local run without a dashboard, they go nowhere.
`cluster/deploy/grafana.json` draws them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ray.util.metrics import Gauge

PREFIX = "musicrl_"
STEP = "step"


class Gauges:
    """A gauge for every figure, made when it first comes."""

    def __init__(self, out: Path) -> None:
        self.run = out.name
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        """The newest value of each figure, and the number of the training step."""
        for name, value in {STEP: float(step), **figures}.items():
            self._gauge(name).set(value, {"run": self.run})

    def _gauge(self, name: str) -> Gauge:
        key = metric_name(name)
        if key not in self._gauges:
            about = f"{name} of the newest training step"
            self._gauges[key] = Gauge(key, description=about, tag_keys=("run",))
        return self._gauges[key]


def metric_name(name: str) -> str:
    """Of a figure, without the `ray_` that Ray puts before it."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", name)
