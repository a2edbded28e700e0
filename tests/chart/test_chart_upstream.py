"""What we emit of other projects' kinds, held to the definitions that they publish: a real API server takes each, strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, KvTransferSpec, RoleSpec, RouterSpec, RouterType
from splitwatt_core.rendering.llmd import inference_pool
from splitwatt_core.rendering.render import RenderContext
from splitwatt_core.rendering.render import render as rendered
from splitwatt_lab import upstream
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from support.some import some
from support.upstream import dry_run, served

from .conftest import Render

MONITORING = "--api-versions=monitoring.coreos.com/v1"
WATCHED = (MONITORING, "--api-versions=grafana.integreatly.org/v1beta1", "--api-versions=perses.dev/v1alpha2")
PLURALS = {
    "PodMonitor": "podmonitors",
    "PrometheusRule": "prometheusrules",
    "GrafanaDashboard": "grafanadashboards",
    "PersesDashboard": "persesdashboards",
}
TEMPLATE = {"metadata": {"annotations": {"a": "b"}}, "spec": {"tolerations": [{"key": "team", "operator": "Exists"}]}}
LONG = "a-cluster-with-a-name-of-more-than-sixty-three-characters.and-a-dot"


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    with served(control_plane, "InferencePool", "LeaderWorkerSet", *PLURALS):
        yield control_plane


def cluster(namespace: str, name: str = "chat", **changes: Any) -> ClusterSpec:
    given: dict[str, Any] = {
        "engine": EngineSpec(EngineType.VLLM),
        "prefill": RoleSpec(2, 4),
        "decode": RoleSpec(1, 8),
        "router": RouterSpec(RouterType.LLMD),
        **changes,
    }
    return ClusterSpec(
        namespace=namespace, name=name, uid="5f1d5a2e-0000-4000-8000-000000000000", generation=1, model="m", **given
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": LONG},
        {"engine": EngineSpec(EngineType.EMULATED, port=8200), "kv_transfer": KvTransferSpec("Other", 8201)},
        {"router": RouterSpec(RouterType.LLMD, "picker:1", 3, ("--v=2",), {"limits": {"memory": "1Gi"}}, 9400)},
        {"router": RouterSpec(RouterType.VLLM)},
        {"router": RouterSpec(RouterType.NONE)},
        {
            "router": RouterSpec(RouterType.VLLM),
            "prefill": RoleSpec(2, 8, nodes_per_replica=2),
            "decode": RoleSpec(1, 8, template=TEMPLATE, nodes_per_replica=4),
        },
    ],
    ids=["llmd", "a long name", "emulated", "a user's own settings", "vllm", "none", "several nodes"],
)
def test_every_object_of_a_cluster_is_taken(
    plane: ControlPlane, make_namespace: Callable[[], str], changes: dict[str, Any]
) -> None:
    for manifest in some(rendered(cluster(make_namespace(), **changes), RenderContext())):
        answer = dry_run(plane, manifest)
        assert answer.status_code == 201, f"{manifest['kind']} {manifest['metadata']['name']}: {answer.text}"


def test_a_pool_says_what_the_definition_does_not_have_to_fill_in(plane: ControlPlane, namespace: str) -> None:
    """Also where one of its defaults changes, ours stays."""
    pool = inference_pool(cluster(namespace))
    answer = dry_run(plane, pool).json()
    assert answer["spec"] == {**pool["spec"], "endpointPickerRef": {**pool["spec"]["endpointPickerRef"], "group": ""}}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"targetPorts": []}, "spec.targetPorts"),
        ({"appProtocol": "grpc"}, "spec.appProtocol"),
        ({"endpointPickerRef": {"name": "chat-router"}}, "port is required when kind is 'Service'"),
        ({"surprise": 1}, "field not declared in schema"),
    ]
    for change, says in wrong:
        refused = dry_run(plane, {**pool, "spec": {**pool["spec"], **change}})
        assert refused.status_code in (400, 422, 500) and says in refused.text, refused.text


def test_what_the_chart_emits_for_those_who_watch_is_taken(plane: ControlPlane, render: Render, namespace: str) -> None:
    found = [m for (kind, _), m in render(*WATCHED).items() if kind in PLURALS]
    assert {m["kind"] for m in found} == set(PLURALS)
    for manifest in found:
        here = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
        path = f"/apis/{here['apiVersion']}/namespaces/{namespace}/{PLURALS[here['kind']]}/{here['metadata']['name']}"
        answer = dry_run(plane, here, path)
        assert answer.status_code == 201, answer.text
        refused = dry_run(plane, {**here, "spec": {**here["spec"], "surprise": 1}}, path)
        assert "field not declared in schema" in refused.text, refused.text


def test_a_module_that_is_not_what_was_pinned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = upstream.DEFINITIONS["InferencePool"]
    with pytest.raises(LabError, match=r"sigs\.k8s\.io/gateway-api-inference-extension@v1\.6\.0 has the hash h1:.* is pinned"):
        upstream.definition_file(replace(pinned, sum="h1:other"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabError, match=r"there is no `go` on PATH"):
        upstream.definition_file(pinned)


def test_every_definition_is_the_one_that_it_is_called() -> None:
    for kind, definition in some(upstream.DEFINITIONS.items()):
        text = upstream.definition_file(definition).read_text(encoding="utf-8")
        assert f"  name: {definition.crd}\n" in text and f"    kind: {kind}\n" in text
