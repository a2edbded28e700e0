"""Somebody else's pods: an emulated engine each, which no InferenceCluster knows of."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx
from splitwatt_core.names import GATE_POWER, LABEL_CLUSTER

from ground.serving import MODEL, living, make_namespace
from ground.site import Site

NAMESPACE: Final = "others"
PORT: Final = 8000
READY_S: Final = 90.0
_AT_ONCE: Final = 4
_TOKENS: Final = 400


def pod(
    site: Site,
    name: str,
    *,
    node: str,
    resources: Mapping[str, int] | None = None,
    claim: str | None = None,
    visible: str | None = None,
    labels: Mapping[str, str] | None = None,
    gated: bool = False,
) -> Mapping[str, Any]:
    """On `node`, with one GPU: by `resources`, by a ResourceClaim, or by nothing but the runtime class. `visible`: its UUID,
    where nobody tells the container. `gated`: it asks for power admission."""
    container: dict[str, Any] = {
        "name": "engine",
        "image": site.cluster.image("engine"),
        "imagePullPolicy": "IfNotPresent",
        "args": [MODEL, "--tensor-parallel-size=1", f"--port={PORT}"],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 1},
        "resources": {"limits": dict(resources or {})},
    }
    if visible is not None:
        container["env"] = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": visible}]
    spec: dict[str, Any] = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }
    if site.cluster.runtime_class:
        spec["runtimeClassName"] = site.cluster.runtime_class
    if claim is not None:
        spec["resourceClaims"] = [{"name": "gpu", "resourceClaimName": claim}]
        container["resources"]["claims"] = [{"name": "gpu"}]
    if gated:
        spec["schedulingGates"] = [{"name": GATE_POWER}]
    own = {LABEL_CLUSTER: ""} if gated else {}
    meta = {"name": name, "namespace": NAMESPACE, "labels": {**(labels or {}), **own}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def deployment(site: Site, name: str, *, node: str, **labels: str) -> Mapping[str, Any]:
    """Of one replica with one GPU, whose pod has these labels and its own name."""
    labels = {"app": name, **labels}
    spec = pod(site, name, node=node, resources={"nvidia.com/gpu": 1})["spec"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def start(site: Site, *pods: Mapping[str, Any]) -> None:
    """Raises LabError when one is not Ready by then."""
    make_namespace(site, NAMESPACE)
    site.apply(*pods)
    for each in pods:
        site.await_ready("pod", each["metadata"]["name"], "-n", NAMESPACE, timeout_s=READY_S)


def end(site: Site) -> None:
    site.cluster.kubectl("delete", "pods,resourceclaims", "--all", "-n", NAMESPACE, "--ignore-not-found", "--timeout=60s")


def told(site: Site, name: str) -> str:
    """The UUID that the kubelet gave to a pod."""
    words = ("exec", "-n", NAMESPACE, name, "--", "printenv", "NVIDIA_VISIBLE_DEVICES")
    return site.cluster.kubectl(*words).stdout.strip()


def gpus(site: Site, selector: str) -> list[tuple[str, int]]:
    """Node and slot of each GPU that the kubelet gave to running pods which this selects."""
    held = []
    for each in living(site, selector, namespace=NAMESPACE):
        twin = site.cluster.twin(each["spec"]["nodeName"])
        held += [(each["spec"]["nodeName"], twin.uuids.index(uuid)) for uuid in told(site, each["metadata"]["name"]).split(",")]
    return held


@contextmanager
def at_work(site: Site, name: str) -> Iterator[None]:
    """Its engine computes all the while."""
    address = site.get("pod", name, "-n", NAMESPACE)["status"]["podIP"]
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60.0, trust_env=False) as client:
            while not stop.is_set():
                body = {"prompt": list(range(2000)), "max_tokens": _TOKENS}
                client.post(f"http://{address}:{PORT}/v1/completions", json=body).raise_for_status()

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(_AT_ONCE)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def report(site: Site, node: str, uuid: str) -> Mapping[str, Any]:
    """What the node's agent says of a GPU."""
    reports = site.get("np", node).get("status", {}).get("gpus", [])
    found: Mapping[str, Any] = next(each for each in reports if each["uuid"] == uuid)
    return found


def owners(site: Site, node: str, uuid: str) -> Sequence[str]:
    """Names of the pods that hold a GPU, by its agent's word."""
    said = report(site, node, uuid)
    held = said.get("workloads") or ([said["workload"]] if said.get("workload") else [])
    return sorted(each["pod"] for each in held)


def free(site: Site, node: str) -> tuple[int, str]:
    """The last GPU of a node that nobody holds, once who had it has left: slot and UUID."""
    slots = list(enumerate(site.cluster.twin(node).uuids))[::-1]
    unheld: list[tuple[int, str]] = []

    def one_is() -> bool:
        unheld.extend((slot, uuid) for slot, uuid in slots if not owners(site, node, uuid))
        return bool(unheld)

    site.await_(f"a GPU of {node} that nobody holds", one_is, timeout_s=READY_S)
    return unheld[0]
