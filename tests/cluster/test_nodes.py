"""A run on two nodes: raylets of one machine, and machines of their own as network namespaces are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from musicrl.archive import Archive
from musicrl.config import TrainConfig, dump_yaml
from musicrl.solo import solo

pytestmark = pytest.mark.ray
Configure = Callable[..., TrainConfig]
ROOT = Path(__file__).parent.parent.parent
STORE_BYTES = 100 * 10**6
DEADLINE_SECONDS = 120
STEPS = 2
CLUSTER = {"num_samplers": 2, "num_scorers": 1, "placement": "spread"}


@pytest.fixture(scope="module")
def made() -> list[TrainConfig]:
    """The run of one process, once a test has made it."""
    return []


@pytest.fixture
def alone(
    configure: Configure, made: list[TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
    """The run of one process that the others must equal."""
    if not made:
        out = tmp_path_factory.mktemp("alone") / "run"
        made.append(configure(out=str(out), iterations=STEPS, archive_rollouts=True))
        solo(made[0])
    return made[0]


def assert_same(ours: TrainConfig, theirs: TrainConfig) -> None:
    """The same rollouts of every step and the same weights at the end, bit for bit."""
    archives = [Archive(config.out / "rollouts") for config in (ours, theirs)]
    for step in range(STEPS):
        for mine, yours in zip(*(archive.read(step) for archive in archives), strict=True):
            for name in ("tokens", "logprobs", "seeds", "version"):
                ours_, theirs_ = (getattr(e.rollouts, name) for e in (mine, yours))
                assert ours_.tobytes() == theirs_.tobytes(), (step, name)
            assert mine.rewards.total.tobytes() == yours.rewards.total.tobytes()
    ends = [
        load_file(config.out / "checkpoints" / f"step_{STEPS:06d}" / "learner.safetensors")
        for config in (ours, theirs)
    ]
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[1])


def train_at(
    address: str,
    config: TrainConfig,
    *,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Run `musicrl train` on a cluster, in a process of its own."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    file = config.out.with_suffix(".yaml")
    file.write_text(dump_yaml(config))
    command = [*prefix, sys.executable, "-m", "cluster.cli", "train", str(file)]
    run(command, {**environment, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)})


def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        check=False,
        env=environment,
        timeout=DEADLINE_SECONDS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """A head and a node of this machine, of which each has room for a part of the actors."""
    room: dict[str, Any] = {"num_cpus": 3, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**room, "include_dashboard": False})
    cluster.add_node(**room)
    yield cluster
    cluster.shutdown()  # type: ignore[no-untyped-call]


def test_two_nodes_make_the_rollouts_of_one_process(
    two_nodes: Cluster, configure: Configure, alone: TrainConfig
) -> None:
    config = configure(iterations=STEPS, archive_rollouts=True, trace=1, cluster=CLUSTER)
    train_at(str(two_nodes.address), config)
    assert_same(config, alone)
    summary = json.loads((config.out / "summary.json").read_text())
    assert summary["lag_histogram"] == {"0": STEPS * config.rollout.samples_per_step}


SUBNET = "10.213.97"
NAMES = ("musicrl-head", "musicrl-node")


def ip(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *args], check=False, capture_output=True, text=True)


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = ip("netns", "add", "musicrl-try").returncode == 0
    ip("netns", "del", "musicrl-try")
    return made


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Addresses of two network namespaces with a cable between them."""
    if not can_make_namespaces():
        pytest.skip("network namespaces cannot be made here")
    addresses = [f"{SUBNET}.{number}" for number in (1, 2)]
    for name in NAMES:
        ip("netns", "add", name)
    ip("link", "add", "mrl0", "netns", NAMES[0], "type", "veth", "peer", "mrl1", "netns", NAMES[1])
    for name, address, link in zip(NAMES, addresses, ("mrl0", "mrl1"), strict=True):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
        for each in ("lo", link):
            ip("-n", name, "link", "set", each, "up")
        other = addresses[1 - addresses.index(address)]
        ip("-n", name, "route", "add", "default", "via", other)
    yield addresses
    for name in NAMES:
        for pid in ip("netns", "pids", name).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", name)


def start_ray(name: str, folder: Path, *args: str) -> None:
    """`ray start` in a namespace."""
    folder.mkdir()
    command = [str(Path(sys.executable).parent / "ray"), "start", *args, "--num-cpus=3"]
    run(
        ["ip", "netns", "exec", name, *command, f"--object-store-memory={STORE_BYTES}"],
        environment_at(folder),
    )


def environment_at(folder: Path) -> dict[str, str]:
    """Where listeners have the addresses of their namespace, and are asked for no token."""
    kept = {k: v for k, v in os.environ.items() if k != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    return {**kept, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}


def test_two_machines_make_the_rollouts_of_one_process(
    namespaces: list[str],
    configure: Configure,
    alone: TrainConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each namespace has a network of its own, as a machine has; they share the disk alone."""
    short = tmp_path_factory.mktemp("r")  # sockets allow no long paths
    address = f"{namespaces[0]}:6399"
    start_ray(
        NAMES[0],
        short / "a",
        "--head",
        "--port=6399",
        f"--node-ip-address={namespaces[0]}",
        "--include-dashboard=false",
    )
    start_ray(NAMES[1], short / "b", f"--address={address}", f"--node-ip-address={namespaces[1]}")
    config = configure(iterations=STEPS, archive_rollouts=True, cluster=CLUSTER)
    prefix = ["ip", "netns", "exec", NAMES[0]]
    train_at(address, config, prefix=prefix, environment=environment_at(short / "a"))
    assert_same(config, alone)
