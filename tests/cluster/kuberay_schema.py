"""KubeRay's custom resources as one small JSON Schema: how the files in `schemas/` were made.

    python -m tests.cluster.kuberay_schema ray.io_rayjobs.yaml tests/cluster/schemas/rayjob.json

from `ray-operator/config/crd/bases` of github.com/ray-project/kuberay (Apache-2.0). Descriptions are
left out, repeated parts are written once, and unknown keys are refused, as `kubectl apply` does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

LEFT_OUT = ("description", "default", "format")
SHARED_SIZE = 200
"""Characters from which on a part that comes twice is written once."""


def to_json_schema(resource: dict[str, Any]) -> dict[str, Any]:
    """The schema of the version v1 of a CustomResourceDefinition."""
    (version,) = (v for v in resource["spec"]["versions"] if v["name"] == "v1")
    schema = convert(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    counts: dict[str, int] = {}
    count(schema, counts)
    texts = [t for t, n in counts.items() if n > 1 and len(t) >= SHARED_SIZE]
    names = {text: f"d{i}" for i, text in enumerate(texts)}
    root = {key: share(value, names) for key, value in schema.items()}
    parts = {names[t]: {k: share(v, names) for k, v in json.loads(t).items()} for t in texts}
    return {**root, "$defs": parts}


def convert(node: Any) -> Any:
    """OpenAPI's schema objects to JSON Schema's; everything else as it is."""
    if isinstance(node, list):
        return [convert(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {k: v for k, v in node.items() if k not in LEFT_OUT and not k.startswith("x-kub")}
    if "properties" in kept:
        kept["properties"] = {k: convert(v) for k, v in kept["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            kept.setdefault("additionalProperties", False)
    return {k: v if k == "properties" else convert(v) for k, v in kept.items()}


def count(node: Any, counts: dict[str, int]) -> None:
    """How often every object with properties stands in a schema."""
    for child in node.values() if isinstance(node, dict) else ():
        count(child, counts)
    if isinstance(node, dict) and "properties" in node and isinstance(node.get("type"), str):
        text = json.dumps(node, sort_keys=True)
        counts[text] = counts.get(text, 0) + 1


def share(node: Any, names: dict[str, str]) -> Any:
    if not isinstance(node, dict):
        return node
    name = names.get(json.dumps(node, sort_keys=True))
    if name is not None:
        return {"$ref": f"#/$defs/{name}"}
    return {key: share(value, names) for key, value in node.items()}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    made = to_json_schema(yaml.safe_load(source.read_text(encoding="utf-8")))
    target.write_text(json.dumps(made, sort_keys=True, separators=(",", ":")) + "\n")
