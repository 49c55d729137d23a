"""The settings of `musicrl plan`, and the sizes of a cluster that they name. It runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from musicrl.config import ClusterConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Predict throughput, utilisation and lag of a run for several sizes of a cluster."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The run. Its samplers, scorers, learners and max_lag are those of the grid where that names
    any."""
    samplers: tuple[int, ...] = (1, 2, 4, 8)
    scorers: tuple[int, ...] = ()
    """(none: as the run has)."""
    learners: tuple[int, ...] = ()
    """(none: as the run has). The costs of several follow from those of one, and from what a sum
    over ranks takes on this machine."""
    lags: tuple[int, ...] = (0, 1, 2)
    """Values of max_lag."""
    costs: Path | None = None
    """`trace.json` of a run with the same model, sizes and devices, and one learner, written by
    `musicrl train --trace 6` or more (none: measured here by a short run)."""
    contention: float = 0.0
    """With `costs`: how much longer a task takes, as a share, while all other cores of its machine
    are busy. A short run measures it itself."""
    nodes: int = 0
    """Machines to plan for (0: those of the Ray cluster that the run would join, else this one)."""
    node_cores: int = 0
    """CPU cores of each of them."""
    node_gpus: int = 0
    gpu_gb: float = 0.0
    """Memory of every GPU, GB: a run whose learner or samplers do not fit is refused (0: not
    checked)."""
    memory_only: bool = False
    """Say what memory the run needs, and forecast nothing: no weights are needed for that."""
    updates: int = 60
    """Simulated updates of every size."""
    measured_updates: int = 4
    """Real updates behind each measured figure."""
    check: bool = False
    """Also run every size for real, here, and show how far off the forecast is."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        for name in ("samplers", "lags"):
            if not getattr(self, name):
                raise ValueError(f"{name} names none")
        for name, least in (("samplers", 1), ("scorers", 1), ("learners", 1), ("lags", 0)):
            if min(getattr(self, name), default=least) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.updates < 1 or self.measured_updates < 2:
            raise ValueError("updates must be 1 or more, and measured_updates 2 or more")
        if self.nodes and not self.node_cores:
            raise ValueError(f"nodes {self.nodes}: node_cores says how large they are")
        if (self.node_cores or self.node_gpus) and not self.nodes:
            raise ValueError("node_cores and node_gpus describe machines of which nodes names none")
        if not self.gpu_gb >= 0:
            raise ValueError(f"gpu_gb must not be negative, got {self.gpu_gb}")
        if self.contention and self.costs is None:
            raise ValueError("contention goes with costs; a short run measures it itself")

    def grid(self) -> list[TrainConfig]:
        """The run at every size."""
        cluster = self.train.cluster
        scorers = self.scorers or (cluster.num_scorers,)
        learners = self.learners or (cluster.num_learners,)
        return [
            replace(self.train, cluster=sized(cluster, lag, samplers, count, ranks))
            for lag, samplers, count, ranks in product(self.lags, self.samplers, scorers, learners)
        ]


def sized(
    cluster: ClusterConfig, lag: int, samplers: int, scorers: int, learners: int
) -> ClusterConfig:
    """The cluster with these numbers of actors; one learner has nothing to share."""
    sharding = cluster.learner_sharding if learners > 1 else "none"
    return replace(
        cluster,
        max_lag=lag,
        num_samplers=samplers,
        num_scorers=scorers,
        num_learners=learners,
        learner_sharding=sharding,
    )
