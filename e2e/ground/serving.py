"""InferenceClusters of emulated engines, in namespaces that enforce the Pod Security level `baseline`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from splitwatt_core.names import GROUP_VERSION, LABEL_CLUSTER, LABEL_POOL, LABEL_ROLE

from ground.site import Site

NAMESPACE: Final = "serving"
MODEL: Final = "meta-llama/Llama-3.1-8B-Instruct"
POOL: Final = "h100"
READY_S: Final = 120.0


def make_namespace(site: Site, name: str = NAMESPACE) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "baseline"}
    site.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def inference_cluster(
    site: Site,
    name: str,
    *,
    prefill: int,
    decode: int,
    gpus: int = 2,
    priority: str = "High",
    namespace: str = NAMESPACE,
    routed: bool = False,
) -> Mapping[str, Any]:
    """`prefill` and `decode` replicas of `gpus` each. Pods get the simulated NVML as a site's get the driver's. Where it is not
    `routed`, the driver asks the engines' pods themselves."""
    runtime = {"runtimeClassName": site.cluster.runtime_class} if site.cluster.runtime_class else {}

    def pool(replicas: int) -> Mapping[str, Any]:
        return {
            "replicas": replicas,
            "gpusPerReplica": gpus,
            "nodeSelector": {LABEL_POOL: POOL},
            "template": {"spec": runtime},
        }

    return {
        "apiVersion": GROUP_VERSION,
        "kind": "InferenceCluster",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": MODEL},
            "engine": {"type": "Emulated", "image": site.cluster.image("engine")},
            "priority": priority,
            "router": {"type": "VLLM", "image": site.cluster.image("router")} if routed else {"type": "None"},
            "prefill": pool(prefill),
            "decode": pool(decode),
        },
    }


def serve(site: Site, *clusters: Mapping[str, Any]) -> float:
    """Apply them and wait until each is Ready; the seconds that took. Raises LabError with what it says instead."""
    site.apply(*clusters)
    took_s = 0.0
    for each in clusters:
        took_s += site.await_ready(f"ic/{each['metadata']['name']}", "-n", each["metadata"]["namespace"], timeout_s=READY_S)
    return took_s


def living(site: Site, selector: str, *, namespace: str = NAMESPACE) -> Sequence[Mapping[str, Any]]:
    """Pods that have not ended and are not about to: a node that lost power leaves failed ones behind."""
    pods = site.get("pods", "-n", namespace, "-l", selector)["items"]
    return [each for each in pods if each["status"].get("phase") == "Running" and "deletionTimestamp" not in each["metadata"]]


def serving_since(site: Site, name: str, since_s: float, *, namespace: str = NAMESPACE) -> int:
    """How many of its pods are Ready and began at Unix time `since_s` or later."""
    count = 0
    for pod in living(site, f"{LABEL_CLUSTER}={name}", namespace=namespace):
        says = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
        starts = [status["state"].get("running", {}).get("startedAt") for status in pod["status"].get("containerStatuses", ())]
        fresh = all(at is not None and datetime.fromisoformat(at).timestamp() >= int(since_s) for at in starts)
        count += says.get("Ready") == "True" and fresh
    return count


def gpus_of(site: Site, name: str, role: str, *, namespace: str = NAMESPACE) -> Mapping[str, list[int]]:
    """Slots of the GPUs that a role's pods hold, by node: what the kubelet gave each, as the pod itself was told."""
    held: dict[str, list[int]] = {}
    for pod in living(site, f"{LABEL_CLUSTER}={name},{LABEL_ROLE}={role}", namespace=namespace):
        node = pod["spec"]["nodeName"]
        words = ("exec", "-n", namespace, pod["metadata"]["name"], "--", "printenv", "NVIDIA_VISIBLE_DEVICES")
        uuids = site.cluster.kubectl(*words).stdout.strip().split(",")
        held.setdefault(node, []).extend(site.cluster.twin(node).uuids.index(uuid) for uuid in uuids)
    return held
