"""The manifests: of the current schemas, closed to strangers, and with room for what they start.

The schemas of KubeRay are its custom resources of August 2026 (commit feeaf72), see
`kuberay_schema.py`; its rules in CEL are not checked. That of `ray up` is the installed Ray's own.
"""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.local.config import prepare_local
from ray.autoscaler._private.util import validate_config

from cluster.cli import VERBS
from cluster.placement import Misfit, place
from musicrl.config import TrainConfig, load_config
from musicrl.settings import read_yaml

DEPLOY = Path(__file__).parent.parent.parent / "cluster" / "deploy"
SCHEMAS = Path(__file__).parent / "schemas"
KUBERAY = pytest.mark.parametrize("kind", ["rayjob", "raycluster"])


def faults(kind: str, manifest: dict[str, Any]) -> list[str]:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    return [e.json_path for e in Draft202012Validator(schema).iter_errors(manifest)]


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster's specification."""
    spec: dict[str, Any] = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec


def nodes_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes that a RayCluster starts, as `ray.nodes()` would list them."""
    nodes = [(1, cluster["headGroupSpec"])]
    nodes += [(group["replicas"], group) for group in cluster["workerGroupSpecs"]]
    return [
        {"NodeID": f"{kind}-{i}", "Alive": True, "Resources": resources(group)}
        for kind, (count, group) in enumerate(nodes)
        for i in range(count)
    ]


def resources(group: dict[str, Any]) -> dict[str, float]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus = group["rayStartParams"].get("num-cpus", limits["cpu"])
    return {"CPU": float(cpus), "GPU": float(limits.get("nvidia.com/gpu", 0))}


def run_of(entrypoint: str) -> TrainConfig:
    program, verb, preset, *flags = shlex.split(entrypoint)
    assert program == "musicrl"
    assert verb in VERBS
    return load_config(preset, flags)


@KUBERAY
def test_a_manifest_is_of_the_current_schema(kind: str) -> None:
    manifest = read_yaml(DEPLOY / f"{kind}.yaml")
    assert (manifest["apiVersion"], manifest["kind"].lower()) == ("ray.io/v1", kind)
    assert faults(kind, manifest) == []


@KUBERAY
def test_the_schema_finds_what_is_wrong(kind: str) -> None:
    manifest = read_yaml(DEPLOY / f"{kind}.yaml")
    wrong = copy.deepcopy(manifest)
    (group,) = cluster_of(wrong)["workerGroupSpecs"]
    group["replica"] = 1
    group["template"]["spec"]["containers"][0]["image"] = 3
    del cluster_of(wrong)["headGroupSpec"]["template"]
    assert len(faults(kind, wrong)) == 3


@KUBERAY
def test_a_cluster_asks_for_a_token_sends_no_statistics_and_has_shared_memory(kind: str) -> None:
    cluster = cluster_of(read_yaml(DEPLOY / f"{kind}.yaml"))
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        (memory,) = (v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm")
        assert memory["medium"] == "Memory"


def test_both_kinds_describe_the_same_cluster() -> None:
    job, cluster = (read_yaml(DEPLOY / f"{kind}.yaml") for kind in ("rayjob", "raycluster"))
    assert cluster_of(job) == cluster_of(cluster)


def test_the_job_fits_its_cluster_and_no_smaller_one() -> None:
    manifest = read_yaml(DEPLOY / "rayjob.yaml")
    config, nodes = run_of(manifest["spec"]["entrypoint"]), nodes_of(cluster_of(manifest))
    plan = place(config.cluster, nodes)
    assert set(plan["sampler"]) | set(plan["learner"]) == {"1-0", "1-1", "1-2"}
    with pytest.raises(Misfit):
        place(config.cluster, nodes[:-1])


def test_the_yaml_of_ray_up_passes_rays_own_checks() -> None:
    config = yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())
    prepared, _ = prepare_local({**config, "cluster_synced_files": []})
    validate_config(prepared)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
        assert "--disable-usage-stats" in commands[-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    with pytest.raises(Exception, match="head_start_commands"):
        validate_config({**prepared, "head_start_commands": []})
