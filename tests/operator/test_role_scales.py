"""Prefill's own scale on a real API server: by kubectl, by the real HorizontalPodAutoscaler with a metric, and in the view."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core.clusters import ClusterName, Role
from splitwatt_lab.certs import Authority
from splitwatt_operator.cluster.store import Key, Kind
from support.objects import Objects
from support.serving_site import PAIR_W, Site, idle_w
from support.waiting import eventually

CHAT = ClusterName("s", "chat")
METRIC = "prompts_waiting"


def scale(objects: Objects, replicas: int, declared: int | None, *, owner: str) -> None:
    """chat's RoleScale, as the API server has it."""
    meta: dict[str, Any] = {
        "namespace": "s",
        "ownerReferences": [{"kind": "InferenceCluster", "name": "chat", "uid": owner, "controller": True}],
        "annotations": {} if declared is None else {"splitwatt.io/declared-replicas": str(declared)},
    }
    spec = {"cluster": "chat", "role": "Prefill", "replicas": replicas}
    objects.put(Kind.ROLE_SCALE, "chat-prefill", meta=meta, spec=spec)


def wanted(objects: Objects) -> int:
    seen = objects.view.cluster(CHAT)
    assert seen is not None and seen.fact is not None
    assert objects.view.clusters.facts[Key(*CHAT)] == seen.fact, "all who look see one number"
    return seen.fact.role(Role.PREFILL).replicas


def test_the_view_has_the_replicas_that_are_in_force() -> None:
    objects = Objects()
    owner = objects.cluster(prefill={"replicas": 2})["metadata"]["uid"]
    assert wanted(objects) == 2
    scale(objects, 5, 2, owner=owner)
    assert wanted(objects) == 5
    objects.cluster(prefill={"replicas": 2})
    assert wanted(objects) == 5, "applied again"
    objects.cluster(prefill={"replicas": 3})
    assert wanted(objects) == 3 and objects.view.declared_replicas(CHAT) == 3
    scale(objects, 4, 3, owner=owner)
    assert wanted(objects) == 4
    objects.cluster(prefill={"replicas": "none"})
    assert wanted(objects) == 4, "the former spec stays, and so does who scaled it"
    scale(objects, 9, 3, owner="another")
    assert wanted(objects) == 3, "somebody else's object"
    objects.view.role_scales.take(Key("s", "chat-prefill"), None)
    objects.cluster(prefill={"replicas": 1})
    assert wanted(objects) == 1


def prefill(site: Site) -> int:
    found = site.get("deployment", "chat-prefill")
    return -1 if found is None else int(found["spec"]["replicas"])


def role_scale_of(site: Site) -> dict[str, Any]:
    found = site.get("rolescale", "chat-prefill")
    assert found is not None
    return found


def test_a_persons_scale_holds_until_the_cluster_says_another_number(site: Site) -> None:
    site.add_nodes(3)
    site.limit(idle_w(3) + 2 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    assert role_scale_of(site)["spec"] == {"cluster": "chat", "role": "Prefill", "replicas": 1}
    site.kubectl("scale", "rolescale", "chat-prefill", "--replicas=2")
    eventually("prefill is scaled", lambda: site.running("chat", "prefill") == 2)
    status = eventually("its status follows", lambda: (s := role_scale_of(site)["status"])["replicas"] == 2 and s)
    selected = site.kubectl("get", "pods", "-l", status["labelSelector"], "-o", "name").split()
    assert len(selected) == 2
    # Whoever applies what he applied before says nothing new.
    site.cluster("chat")
    site.kubectl("annotate", "ic", "chat", "note=1")
    eventually("it was looked at", lambda: (site.get("ic", "chat") or {})["status"]["prefill"]["wantedReplicas"] == 2)
    assert prefill(site) == 2 and role_scale_of(site)["spec"]["replicas"] == 2
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"prefill":{"replicas":0}}}')
    eventually("the cluster's word is newer", lambda: prefill(site) == 0)
    scale = eventually("and its scale is told", lambda: (s := role_scale_of(site))["spec"]["replicas"] == 0 and s)
    assert scale["metadata"]["annotations"]["splitwatt.io/declared-replicas"] == "0"
    site.kubectl("scale", "rolescale", "chat-prefill", "--replicas=1")
    eventually("scaled again", lambda: prefill(site) == 1)
    refused = site.plane.kubectl(
        "-n", site.namespace, "patch", "rolescale", "chat-prefill", "--type=merge", "-p", '{"spec":{"cluster":"x"}}', check=False
    )
    assert refused.returncode != 0 and "for good" in refused.stderr
    site.kubectl("delete", "rolescale", "chat-prefill")
    eventually("it is made again, with the cluster's number", lambda: (site.get("rolescale", "chat-prefill") or {}).get("status"))
    assert role_scale_of(site)["spec"]["replicas"] == 0
    site.kubectl("delete", "ic", "chat")
    eventually("it goes with its cluster", lambda: site.get("rolescale", "chat-prefill") is None)


class ExternalMetrics:
    """A server of external.metrics.k8s.io, at a port of localhost; `value` of every metric."""

    def __init__(self, folder: Path) -> None:
        self.value = 1
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = json.dumps(outer.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        pair = Authority(folder, "metrics").server("external-metrics", dns_names=["localhost"], addresses=["127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> dict[str, Any]:
        version = "external.metrics.k8s.io/v1beta1"
        if not path.partition("?")[0].endswith(METRIC):
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": []}
        item = {"metricName": METRIC, "metricLabels": {}, "timestamp": "2026-01-01T00:00:00Z", "value": str(self.value)}
        return {"kind": "ExternalMetricValueList", "apiVersion": version, "metadata": {}, "items": [item]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def metrics(site: Site, tmp_path: Path) -> Iterator[ExternalMetrics]:
    served = ExternalMetrics(tmp_path)
    service = {"name": "external-metrics", "namespace": site.namespace}
    site.apply({
        "apiVersion": "v1", "kind": "Service", "metadata": service,
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": served.port}]},
    })  # fmt: skip
    site.apply({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
        "spec": {
            "group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "insecureSkipTLSVerify": True, "service": {**service, "port": served.port},
        },
    })  # fmt: skip
    yield served
    site.plane.kubectl("delete", "apiservice", "v1beta1.external.metrics.k8s.io")
    served.close()


def test_the_real_autoscaler_scales_prefill_by_a_metric(site: Site, metrics: ExternalMetrics) -> None:
    site.add_nodes(4)
    site.limit(idle_w(4) + 2 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    target = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "RoleScale", "name": "chat-prefill"}
    wants = {"type": "External", "external": {
        "metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": "10"},
    }}  # fmt: skip
    metrics.value = 30
    site.apply({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "prompts", "namespace": site.namespace},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 5, "metrics": [wants]},
    })  # fmt: skip
    eventually("prefill has three replicas", lambda: prefill(site) == 3)
    assert any(METRIC in path for path in metrics.asked)
    assert site.condition("chat", "ScaledElsewhere") == {}, "nobody fights"
    site.cluster("chat")
    hpa = site.get("hpa", "prompts")
    assert hpa is not None and hpa["status"]["desiredReplicas"] == 3
    eventually("three prompts are read at once", lambda: site.running("chat", "prefill") == 3)
    assert prefill(site) == 3, "who applies the cluster again does not scale it back"
