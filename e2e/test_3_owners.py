"""Whose a GPU is, when no InferenceCluster says so: claims, GPUs that pods share, strangers. None is lowered as a free one is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ground import gpus, others, rack
from ground.site import Site
from splitwatt_lab.judge import Judge

SETTLED_S = 60.0
LOOSE_W = 2800
CLAIM = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceClaim",
    "metadata": {"name": "one-gpu", "namespace": others.NAMESPACE},
    "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}]}},
}


@pytest.fixture
def roomy(installed: Site) -> Iterator[Site]:
    """Watts enough for everybody, and nobody of others' there, before and after."""
    installed.judge()
    others.make_namespace(installed, others.NAMESPACE)
    installed.limit(rack.NAME, rack.limit_w(installed, above_least_w=LOOSE_W))
    yield installed
    others.end(installed)


def cap_w(site: Site, node: str, slot: int) -> float:
    return site.enforced_w()[node][slot]


def await_owners(site: Site, node: str, uuid: str, *names: str) -> None:
    site.await_(f"{uuid} is held by {names}", lambda: others.owners(site, node, uuid) == list(names), timeout_s=SETTLED_S)


def await_raised(site: Site, node: str, slot: int) -> None:
    site.await_("a cap for one at work", lambda: cap_w(site, node, slot) > rack.LEAST_W, timeout_s=SETTLED_S)


def await_free_again(site: Site, node: str, slot: int) -> None:
    site.await_("the cap of a free one again", lambda: cap_w(site, node, slot) == rack.LEAST_W, timeout_s=SETTLED_S)


def unresolved(site: Site, node: str) -> list[str]:
    found: list[str] = site.get("np", node)["status"].get("unresolvedDevices", [])
    return found


def test_a_gpu_by_a_claim_and_two_pods_that_share_it(roomy: Site, judged: Judge) -> None:
    """The scheduler allocates it, the kubelet tells of it under dynamic resources, its UUID stands in a ResourceSlice alone."""
    site, node = roomy, roomy.cluster.nodes()[0]
    slot, uuid = others.free(site, node)
    gpus.offer_by_claim(site.cluster, node, uuid)
    try:
        site.apply(CLAIM)
        others.start(site, others.pod(site, "claimant", node=node, claim="one-gpu", visible=uuid))
        results = site.get("resourceclaim", "one-gpu", "-n", others.NAMESPACE)["status"]["allocation"]["devices"]["results"]
        assert [(each["driver"], each["pool"]) for each in results] == [("gpu.nvidia.com", node)]
        await_owners(site, node, uuid, "claimant")
        await_raised(site, node, slot)
        others.start(site, others.pod(site, "second", node=node, claim="one-gpu", visible=uuid))
        await_owners(site, node, uuid, "claimant", "second")
        assert not unresolved(site, node)
        others.end(site)
        await_owners(site, node, uuid)
        await_free_again(site, node, slot)
    finally:
        others.end(site)
        gpus.withdraw(site.cluster, "gpu-dra-driver")


def test_a_gpu_that_two_pods_share_by_time_slicing(roomy: Site, judged: Judge) -> None:
    site, node = roomy, roomy.cluster.nodes()[0]
    slot, uuid = others.free(site, node)
    gpus.share(site.cluster, node, uuid, replicas=2)
    try:
        pods = [others.pod(site, name, node=node, resources={gpus.SHARED: 1}) for name in ("left", "right")]
        others.start(site, *pods)
        assert others.told(site, "left") == others.told(site, "right") == uuid
        await_owners(site, node, uuid, "left", "right")
        await_raised(site, node, slot)
        assert not unresolved(site, node)
    finally:
        others.end(site)
        gpus.withdraw(site.cluster, "gpu-shared-plugin")


def test_a_strangers_gpu_keeps_its_watts(roomy: Site, judged: Judge) -> None:
    site, node = roomy, roomy.cluster.nodes()[0]
    others.start(site, others.pod(site, "stranger", node=node, resources={"nvidia.com/gpu": 1}))
    uuid = others.told(site, "stranger")
    slot = site.cluster.twin(node).uuids.index(uuid)
    await_owners(site, node, uuid, "stranger")
    await_raised(site, node, slot)
    with others.at_work(site, "stranger"):
        site.await_("it is seen at work", lambda: others.report(site, node, uuid)["use"] == "Busy", timeout_s=SETTLED_S)
        site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W // 2))
        limit_w = rack.limit_w(site, above_least_w=LOOSE_W // 2)
        site.await_("caps within the lowered limit", lambda: rack.may_draw_w(site) <= limit_w, timeout_s=SETTLED_S)
        assert cap_w(site, node, slot) > rack.LEAST_W, "nobody takes it for a free one"
    others.end(site)
    await_free_again(site, node, slot)


def test_a_gpu_that_somebody_uses_whom_nobody_tells_of(roomy: Site, judged: Judge) -> None:
    """By its runtime class alone: no kubelet, plugin or claim knows. What the agent sees of draw and processes counts."""
    site, node = roomy, roomy.cluster.nodes()[0]
    slot, uuid = others.free(site, node)
    others.start(site, others.pod(site, "unseen", node=node, visible=uuid))
    with others.at_work(site, "unseen"):
        site.await_("it is seen at work", lambda: others.report(site, node, uuid)["use"] == "Busy", timeout_s=SETTLED_S)
        await_raised(site, node, slot)
        assert others.owners(site, node, uuid) == []
    others.end(site)
    await_free_again(site, node, slot)
