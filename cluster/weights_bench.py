"""How long new weights are on their way from a learner to a sampler, beside copies of the same bytes.

    learner   tensors, in one buffer ─ checksum ─► return value ─► object store
    sampler   object store ─ get (no copy) ─► checksum ─► read by its policy where they are

With `transport collective` the learner broadcasts them too, by gloo, before it returns them, and the
sampler takes what has come so, and copies it into its own tensors.

Two actors of this node do what a learner and a sampler do, through the same functions. `memcpy` is
one copy of those bytes between two buffers of the learner that have been touched, by one thread or
by as many as there are cores (Ray's copy into its store has several), whichever is faster. Versions
follow each other as those of a run, so far apart that Ray has freed the version before the last;
medians are taken over them, and the first ones, which touch the store's memory, do not count.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypedDict

import numpy as np
import ray
import torch
from ray import ObjectRef
from rich.console import Console
from rich.table import Table
from torch import nn

from cluster.connection import connected
from cluster.controller_bench import processor_name
from musicrl.bounds import at_least
from musicrl.broadcast import Address, Broadcaster, Kind
from musicrl.config import ClusterConfig
from musicrl.listener import Listener
from musicrl.policies.flat import adopt, apply, checksum, flatten, settle
from musicrl.textfile import write_text
from musicrl.types import Weights

WARMUP = 4
APART_SECONDS = 1.2
"""Between versions: Ray frees what is no longer referred to once a second."""
COPY_REPEATS = 3
WIDTH = 1024
TIMEOUT_SECONDS = 300.0
HOST = "127.0.0.1"


class Place(TypedDict):
    kind: Kind
    device: torch.device
    timeout_seconds: float


GLOO = Place(kind="gloo", device=torch.device("cpu"), timeout_seconds=TIMEOUT_SECONDS)


@dataclass(frozen=True, kw_only=True)
class WeightsBenchConfig:
    """Publish weights and fetch them, again and again."""

    parameters: tuple[int, ...] = (2_600_000, 12_000_000, 100_000_000)
    """Sizes of the models, float32 numbers."""
    versions: int = 15
    """Of each size, that count."""
    readers: int = 1
    """Samplers on this node that fetch every version, at once."""
    threads: int = 1
    """CPU threads of every actor."""
    transport: Literal["store", "collective"] = "store"
    """As `cluster.weights_transport`."""
    json: Path | None = None
    """File that receives the figures."""

    def __post_init__(self) -> None:
        at_least(1, versions=self.versions, readers=self.readers, threads=self.threads)
        if not self.parameters or min(self.parameters) < WIDTH:
            raise ValueError(
                f"parameters must name sizes of {WIDTH} or more, got {self.parameters}"
            )


def make_model(parameters: int) -> nn.Module:
    """Matrices and vectors, as of a decoder, of about so many numbers."""
    width = int(min(WIDTH, (parameters // 2) ** 0.5))
    count = max(1, parameters // (width * (width + 1)))
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


class Publisher:
    """A learner, as far as weights go."""

    def __init__(self, parameters: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = make_model(parameters)
        self.buffer = settle(self.model)
        self.target = np.ones_like(self.buffer)
        self.broadcaster: Broadcaster | None = None

    def broadcast(self) -> Address:
        """Where versions are broadcast from now on."""
        self.broadcaster = Broadcaster(HOST, **GLOO)
        return self.broadcaster.address

    @ray.method(num_returns=2)
    def publish(self, version: int) -> tuple[dict[str, float], Weights]:
        """The next version, and the seconds of its parts."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(1e-3)
        started = time.perf_counter()
        weights = flatten(self.model, version, out=self.buffer)
        flattened = time.perf_counter()
        checksum(weights)
        summed = time.perf_counter() - flattened
        broadcasting = time.perf_counter()
        missed = [] if self.broadcaster is None else self.broadcaster.publish(weights)
        if missed:
            raise TimeoutError("; ".join(missed))
        seconds = {
            "broadcast": time.perf_counter() - broadcasting,
            "began": started,
            "flatten": flattened - started - summed,
            "checksum": summed,
            "ended": flattened,
        }
        return seconds, weights

    def memcpy(self) -> float:
        """Seconds of a copy of the buffer, by the fastest number of threads."""
        return min(self._copy(threads) for threads in {1, os.cpu_count() or 1})

    def _copy(self, threads: int) -> float:
        targets, sources = (np.array_split(b, threads) for b in (self.target, self.buffer))
        seconds = []
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(1 + COPY_REPEATS):
                started = time.perf_counter()
                list(pool.map(np.copyto, targets, sources))
                seconds.append(time.perf_counter() - started)
        return median(seconds[1:])


class Subscriber:
    """A sampler, as far as weights go."""

    def __init__(self, parameters: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = make_model(parameters)
        self.listener: Listener | None = None

    def listen(self, address: Address | None, name: str) -> None:
        """Be there when versions are broadcast, if they are."""
        if address is not None:
            self.listener = Listener(name, address, host=HOST, **GLOO)
            self.listener.start()
            self.listener.arrived.wait(TIMEOUT_SECONDS)

    def fetch(self, references: Sequence[ObjectRef[Weights]], version: int) -> dict[str, float]:
        """Fetch and apply a version; the seconds of its parts."""
        started = time.perf_counter()
        if self.listener is None:
            return self._use(adopt, ray.get(references[0], timeout=TIMEOUT_SECONDS), started)
        with self.listener.held(version) as weights:
            assert weights is not None
            return self._use(apply, weights, started)

    def _use(
        self, use: Callable[[nn.Module, Weights], None], weights: Weights, started: float
    ) -> dict[str, float]:
        got = time.perf_counter()
        use(self.model, weights)
        ended = time.perf_counter()
        checksum(weights)
        summed = time.perf_counter() - ended
        return {
            "get": got - started,
            "verify": summed,
            "apply": ended - got - summed,
            "fetch": ended - started,
        }


def bench_weights(config: WeightsBenchConfig, console: Console | None = None) -> dict[str, Any]:
    """Time it, print a table and write the JSON file if asked; what it holds."""
    store_mb = max(200, 24 * max(config.parameters) // 10**6)
    cluster = ClusterConfig(object_store_mb=store_mb, num_samplers=config.readers)
    with connected(cluster):
        touch_store(store_mb)
        rows = [time_size(config, parameters) for parameters in config.parameters]
    sizes = {"readers": config.readers, "transport": config.transport}
    report = {"machine": processor_name(), **sizes, "rows": rows}
    (console or Console()).print(to_table(report))
    if config.json is not None:
        write_text(config.json, json.dumps(report, indent=1) + "\n")
    return report


def touch_store(megabytes: int) -> None:
    """Fill most of the object store once: memory that is used for the first time costs more than
    the copy into it, and a long run has used it all."""
    whole = ray.put(np.zeros(megabytes * 800_000, np.uint8))
    del whole
    time.sleep(1)  # until the store hears of it


def time_size(config: WeightsBenchConfig, parameters: int) -> dict[str, Any]:
    """Medians over the versions, in milliseconds."""
    publisher: Any = ray.remote(Publisher).options(num_cpus=0).remote(parameters, config.threads)
    readers: list[Any] = [
        ray.remote(Subscriber).options(num_cpus=0).remote(parameters, config.threads)
        for _ in range(config.readers)
    ]
    address: Address | None = None
    if config.transport == "collective":
        address = ray.get(publisher.broadcast.remote(), timeout=TIMEOUT_SECONDS)
    coming: list[Any] = [r.listen.remote(address, f"reader {i}") for i, r in enumerate(readers)]
    ray.get(coming, timeout=TIMEOUT_SECONDS)
    found = list[dict[str, float]]()
    for version in range(WARMUP + config.versions):
        found.append(time_version(publisher, readers, version))
        time.sleep(APART_SECONDS)
    for actor in (publisher, *readers):
        ray.kill(actor)
    counted = found[WARMUP:]
    row: dict[str, Any] = {name: 1e3 * median(one[name] for one in counted) for name in counted[0]}
    megabytes = 4 * sum(p.numel() for p in make_model(parameters).parameters()) / 1e6
    ratio = median((one["publish"] + one["fetch"]) / one["memcpy"] for one in counted)
    return {"parameters": parameters, "megabytes": megabytes, **row, "copies": ratio}


def time_version(publisher: Any, readers: Sequence[Any], version: int) -> dict[str, float]:
    """Seconds of one version on its way: `publish` until it is in the store, `fetch` until every
    reader has applied it."""
    copying = ray.get(publisher.memcpy.remote(), timeout=TIMEOUT_SECONDS)
    report, weights = publisher.publish.remote(version)
    seconds = ray.get(report, timeout=TIMEOUT_SECONDS)
    ray.wait([weights], timeout=TIMEOUT_SECONDS, fetch_local=False)
    stored = time.perf_counter()  # the same clock in all processes of a machine
    fetching = [reader.fetch.remote([weights], version) for reader in readers]
    fetched = ray.get(fetching, timeout=TIMEOUT_SECONDS)
    slowest = max(fetched, key=lambda one: one["fetch"])
    publish = stored - seconds["began"] - seconds["checksum"]  # which was taken a second time
    return {
        "memcpy": copying,
        "flatten": seconds["flatten"],
        "checksum": seconds["checksum"],
        "broadcast": seconds["broadcast"],
        "put": publish - seconds["flatten"] - seconds["checksum"] - seconds["broadcast"],
        "publish": publish,
        **slowest,
    }


def to_table(report: dict[str, Any]) -> Table:
    title = (
        f"weights on their way, ms ({report['machine']}; readers: {report['readers']}; by: "
        f"{report['transport']})"
    )
    table = Table("size", title=title)
    learner, sampler = ("flatten", "checksum", "broadcast", "put"), ("get", "verify", "apply")
    phases = (*learner, *sampler, "publish", "fetch", "memcpy")
    for column in ("MB", *phases, "copies"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        cells = (f"{row[phase]:.2f}" for phase in phases)
        table.add_row(
            f"{row['parameters'] / 1e6:g} M",
            f"{row['megabytes']:.0f}",
            *cells,
            f"{row['copies']:.1f}",
        )
    return table
