"""The entry of a run on Ray: sets what Ray reads from the environment, then trains.

Ray reads some of it when it is imported, so nothing here imports Ray at the top.
"""

from __future__ import annotations

import os
from typing import Any

from musicrl.config import ClusterConfig, TrainConfig


def train(config: TrainConfig) -> dict[str, Any]:
    """Train on a local Ray, or on the one of `cluster.address` or RAY_ADDRESS; the summary."""
    prepare_environment(config.cluster)
    from cluster.training import run_training

    return run_training(config)


def prepare_environment(cluster: ClusterConfig) -> None:
    """No telemetry and no GPU for those who asked for none; a local Ray listens on the loopback
    only, and makes do with the disk where /dev/shm is small (in a container)."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if address_of(cluster) is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")


def address_of(cluster: ClusterConfig) -> str | None:
    """The cluster to join, None for one of this run's own.

    Raises ValueError for the address of the dashboard, which is not the cluster's.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith(("http://", "https://")):
        raise ValueError(
            f"the Ray address {address} is that of the dashboard (`ray job submit` takes it); "
            "a run joins HOST:6379, or `auto` on a node of the cluster"
        )
    return None if address == "local" else address
