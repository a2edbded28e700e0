"""A router that is asked for of a cluster that serves without one, on a real API server with kwok's nodes."""

from __future__ import annotations

import json
from typing import Any

from splitwatt_core.clusters import Role
from splitwatt_core.names import LABEL_ROUTER
from splitwatt_core.rendering.objects import selector_labels
from support.serving_site import PAIR_W, Site, idle_w
from support.waiting import eventually

ENGINES = selector_labels("chat", Role.DECODE)


def leads_to(site: Site) -> dict[str, str]:
    service = site.get("service", "chat")
    selector: dict[str, str] = {} if service is None else service["spec"]["selector"]
    return selector


def routed(site: Site, **router: Any) -> None:
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps({"spec": {"router": router}}))


def test_the_service_leads_to_engines_until_a_router_is_ready_and_to_the_router_from_then_on(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat", router={"type": "None"})
    site.await_condition("chat", "Ready", "True")
    assert leads_to(site) == ENGINES
    nowhere = {"splitwatt.io/pool": f"{site.rack}-nowhere"}
    routed(site, type="VLLM", template={"spec": {"nodeSelector": nowhere}})
    site.await_condition("chat", "RouterReady", "False", "RouterNotReady")
    eventually("its pod waits", lambda: any(LABEL_ROUTER in pod["metadata"]["labels"] for pod in of_router(site)))
    assert leads_to(site) == ENGINES, "requests would fail"

    seen: list[tuple[bool, bool]] = []

    def turned() -> bool:
        at, ready = leads_to(site), site.condition("chat", "RouterReady").get("status") == "True"
        seen.append((LABEL_ROUTER in at, any(_ready(pod) for pod in of_router(site))))
        return LABEL_ROUTER in at and ready

    routed(site, template={"spec": {"nodeSelector": {"splitwatt.io/pool": site.rack}}})
    eventually("the Service leads to the router", turned)
    assert all(ready for to_router, ready in seen if to_router), seen
    routed(site, template={"spec": {"nodeSelector": nowhere}}, replicas=2)
    site.kubectl("delete", "pods", "-l", f"{LABEL_ROUTER}=chat", "--force", "--grace-period=0")
    site.await_condition("chat", "RouterReady", "False", "RouterNotReady")
    assert LABEL_ROUTER in leads_to(site), "and back no more: nothing would be split"
    routed(site, type="None", template=None)
    eventually("the Service leads to engines", lambda: leads_to(site) == ENGINES)


def of_router(site: Site) -> list[dict[str, Any]]:
    pods = site.plane.http.get(f"/api/v1/namespaces/{site.namespace}/pods").raise_for_status().json()["items"]
    return [pod for pod in pods if LABEL_ROUTER in pod["metadata"].get("labels", {})]


def _ready(pod: dict[str, Any]) -> bool:
    return any(row["type"] == "Ready" and row["status"] == "True" for row in pod.get("status", {}).get("conditions", []))
