"""A cluster's DNS, and a Prometheus that is known by a name. CoreDNS itself, in an image of one program; a cluster that has one
already keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from splitwatt_lab.toolbuild import Progress, ensure_built, silent
from splitwatt_lab.toolchain import Tool, tools_directory

from ground import archive
from ground.node_config import DNS_ADDRESS
from ground.site import Site

PINS: Final = Path(__file__).resolve().parents[1] / "dns"
"""Apart from the programs of a node, so that a new pin of one does not build the others anew."""
TOOLS: Final = (Tool("coredns", "coredns", ".", "github.com/coredns/coredns", ("-version",), root=PINS),)
IMAGE: Final = "localhost/splitwatt-e2e-coredns:1"
NAME: Final = "coredns"
SYSTEM: Final = "kube-system"
READY_S: Final = 90.0
PROMETHEUS_URL: Final = "http://prometheus.monitoring.svc:9090"
"""As the README writes it."""
_COREFILE: Final = """.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa {
        pods insecure
        ttl 5
    }
    cache 5
}
"""
_RULES: Final = (
    {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
)


def program(progress: Progress = silent) -> Path:
    """Built where it was not found. Raises LabError."""
    return ensure_built(TOOLS, tools_directory(TOOLS, PINS), progress)["coredns"]


def install(site: Site) -> None:
    """Waits until it answers for names."""
    cluster = site.cluster
    if cluster.kubectl("get", "deploy", NAME, "-n", SYSTEM, check=False).returncode != 0:
        files = {"/coredns": program()}
        cluster.load([archive.write(cluster.scratch / "coredns.tar", name=IMAGE, files=files, entrypoint=["/coredns"])])
        site.apply(*_manifests())
    scale(site, 1)


def scale(site: Site, replicas: int) -> None:
    """And wait until so many run."""
    site.cluster.kubectl("scale", "deploy", NAME, "-n", SYSTEM, f"--replicas={replicas}")

    def so_many() -> bool:
        pods = site.get("pods", "-n", SYSTEM, "-l", "k8s-app=kube-dns")["items"]
        conditions = [{each["type"]: each["status"] for each in pod["status"].get("conditions", ())} for pod in pods]
        return len(pods) == replicas and all(each.get("Ready") == "True" for each in conditions)

    site.await_(f"{replicas} pods of {NAME}", so_many, timeout_s=READY_S)


def name_prometheus(site: Site) -> None:
    """The site's Prometheus by the README's name: a Service without pods."""
    meta = {"name": "prometheus", "namespace": "monitoring"}
    slice_meta = {**meta, "name": "prometheus-1", "labels": {"kubernetes.io/service-name": "prometheus"}}
    port = site.metering.prometheus.port
    site.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "monitoring"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 9090, "targetPort": port}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": slice_meta,
            "addressType": "IPv4",
            "ports": [{"port": port}],
            "endpoints": [{"addresses": [site.cluster.address_of_host], "conditions": {"ready": True}}],
        },
    )


def _manifests() -> list[Mapping[str, Any]]:
    meta = {"name": NAME, "namespace": SYSTEM}
    labels = {"k8s-app": "kube-dns"}
    rbac = "rbac.authorization.k8s.io"
    container = {
        "name": NAME,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
    }
    pod = {
        "serviceAccountName": NAME,
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": NAME}}],
    }
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    template = {"metadata": {"labels": labels}, "spec": pod}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": list(_RULES)},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", **meta}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": _COREFILE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": SYSTEM},
            "spec": {"clusterIP": DNS_ADDRESS, "selector": labels, "ports": ports},
        },
    ]
