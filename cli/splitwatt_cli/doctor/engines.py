"""Do the engines of every serving InferenceCluster tell Prometheus how fast they are, with the labels that we ask by? Pure."""

from __future__ import annotations

from collections.abc import Iterator

from splitwatt_core.clusters import cluster_label
from splitwatt_core.names import LABEL_CLUSTER, LABEL_ROLE

from splitwatt_cli.conditions import name_of
from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.finding import Finding, Gravity


def check(facts: SiteFacts) -> Iterator[Finding]:
    telemetry = facts.telemetry
    if telemetry.problem:
        return
    for obj in sorted(facts.seen.clusters, key=name_of):
        meta, status = obj["metadata"], obj.get("status") or {}
        if not any((status.get(role) or {}).get("readyReplicas") for role in ("prefill", "decode", "mixed")):
            continue  # who does not run tells nothing
        label = cluster_label(meta["name"])
        if (meta["namespace"], label) in telemetry.engines:
            continue
        subject, namespace = f"InferenceCluster {name_of(obj)}", facts.seen.namespace
        pods = {
            (pod["metadata"]["namespace"], pod["metadata"]["name"])
            for pod in facts.seen.pods
            if pod["metadata"]["namespace"] == meta["namespace"]
            and (pod["metadata"].get("labels") or {}).get(LABEL_CLUSTER) == label
        }
        if pods & telemetry.pods:
            text = "its engines are scraped without the labels cluster and role: their latencies are nobody's"
            labels = f"{LABEL_CLUSTER} and {LABEL_ROLE}"
            fix = f"kubectl -n {namespace} get podmonitor splitwatt-engines -o yaml   # how {labels} become labels"
        else:
            text = "engine metrics are missing: Prometheus has no latency of its engines, and SLOAttained is Unknown"
            value = "metrics.podMonitor.engines.enabled=true"
            fix = f"helm upgrade splitwatt helm/splitwatt -n {namespace} --reuse-values --set {value}"
        yield Finding(Gravity.BROKEN, "NoEngineMetrics", subject, text, fix)
