"""Argo CD and Flux compare what they render with what the cluster holds: nothing may differ that nobody changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.install import NAMESPACE
from support.some import some

from .conftest import CHART, PLATFORMS, REGISTRY, Helm, Render
from .test_chart_platforms import SCC

MANAGER = "argocd-controller"
DIFFERENT = [path for path in PLATFORMS if path.stem in ("kubeadm", "gke", "openshift")]
"""What the others set differs from these in words alone."""
EVERYTHING = {
    "operator": {
        "prometheus": {"secretName": "client", "configMapName": "ca", "matchers": ['cluster="a"']},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podAnnotations": {"a": "b"},
    },
    "agent": {"nodeSelector": {"pool": "gpu"}, "podLabels": {"team": "power"}},
    "networkPolicy": {"metricsFrom": [{"podSelector": {}}], "egress": {"enabled": True}},
    "imagePullSecrets": [{"name": "key"}],
}


def differences(wanted: Any, live: Any, path: str = "") -> Iterator[str]:
    """Where the cluster holds something else than was written. What it holds besides is its own (defaults, status)."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            if not isinstance(live, dict) or key not in live:
                yield f"{path}.{key}: {value!r} was dropped"
            else:
                yield from differences(value, live[key], f"{path}.{key}")
    elif isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            yield f"{path}: {wanted!r} became {live!r}"
        else:
            for at, (one, other) in enumerate(zip(wanted, live, strict=True)):
                yield from differences(one, other, f"{path}[{at}]")
    elif wanted != live or type(wanted) is not type(live):
        yield f"{path}: {wanted!r} became {live!r}"


def test_the_comparison_sees_what_an_api_server_does() -> None:
    wanted = {"cpu": "1000m", "ports": [{"port": 1}], "empty": {}}
    assert len(list(differences(wanted, {"cpu": "1", "ports": [{"port": 1}, {"port": 2}]}))) == 3
    assert not list(differences(wanted, {"cpu": "1000m", "ports": [{"port": 1, "protocol": "TCP"}], "empty": {}, "more": 1}))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("gitops-plane")) as plane:
        plane.kubectl("create", "namespace", NAMESPACE)
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(SCC))
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{SCC['metadata']['name']}")
        yield plane


def apply(plane: ControlPlane, documents: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    said = plane.kubectl(
        "apply", "--server-side", "--force-conflicts", f"--field-manager={MANAGER}", "-o", "json", "-f", "-", stdin=text
    )
    items = json.loads(said.stdout)["items"]
    return {(item["kind"], item["metadata"]["name"]): item for item in items}


@pytest.mark.parametrize("values", [*DIFFERENT, EVERYTHING], ids=lambda v: v.stem if isinstance(v, Path) else "everything")
def test_what_was_rendered_is_what_the_cluster_holds(bare: ControlPlane, render: Render, values: Any) -> None:
    arguments = [f"--values={values}", f"--set=image.registry={REGISTRY}"] if isinstance(values, Path) else []
    documents = list(render(*arguments, values=None if isinstance(values, Path) else values).values())
    first = apply(bare, documents)
    wrong = [
        f"{document['kind']}/{document['metadata']['name']}{line}"
        for document in some(documents)
        for line in differences(document, first[document["kind"], document["metadata"]["name"]])
    ]
    assert wrong == []
    second = apply(bare, documents)
    assert {key: said(item) for key, item in second.items()} == {key: said(item) for key, item in first.items()}


def said(item: dict[str, Any]) -> dict[str, Any]:
    """All of an object but what controllers add meanwhile."""
    metadata = {key: item["metadata"].get(key) for key in ("uid", "generation", "labels")}
    return {key: value for key, value in item.items() if key != "status"} | {"metadata": metadata}


def test_a_render_asks_no_cluster_has_no_hooks_and_is_the_same_each_time(helm: Helm) -> None:
    texts = {helm("template", "splitwatt", CHART, values={"image": {"registry": REGISTRY}}).stdout for _ in range(2)}
    assert len(texts) == 1 and "kind: DaemonSet" in texts.pop()
    asked = re.compile(r"\{\{[^}]*\b(lookup|now|uuidv4|rand\w+|gen\w+)\b|helm\.sh/hook")
    for file in some(sorted(path for path in (CHART / "templates").rglob("*") if path.is_file())):
        assert not asked.search(file.read_text()), file
