"""Watts that do not reach: two clusters compete, a third waits for its floors, a limit falls below floors and below minima."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

import pytest
from ground import rack, serving
from ground.site import Site
from ground.traffic import Traffic
from splitwatt_lab.judge import Judge

PER_S = 3.0
SETTLED_S = 60.0
FLOOR_W = 350
"""Of an H100 in either phase: the cliff of its profile."""
LOOSE_W = 2800
"""All that six GPUs ask for, above their minima."""
FLOORS_W = 6 * (FLOOR_W - rack.LEAST_W)
SHORT_W = FLOORS_W + 200
"""200 W are left: too few for two floors more."""


@pytest.fixture(scope="module")
def two(installed: Site) -> Iterator[Site]:
    """`chat`, High, on four GPUs, and `batch`, Low, on two."""
    site = installed
    site.judge()
    serving.make_namespace(site)
    site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))
    serving.serve(site, serving.inference_cluster(site, "chat", prefill=1, decode=1))
    serving.serve(site, serving.inference_cluster(site, "batch", prefill=1, decode=1, gpus=1, priority="Low"))
    yield site
    site.cluster.kubectl("delete", "ic", "batch", "late", "-n", serving.NAMESPACE, "--ignore-not-found")
    site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))


def traffic(site: Site, name: str) -> Traffic:
    return Traffic(site.cluster, namespace=serving.NAMESPACE, name=name, per_s=PER_S)


def held(site: Site, *names: str) -> Mapping[tuple[str, str], list[tuple[str, int]]]:
    """Node and slot of each GPU, by cluster and role."""
    return {
        (name, role): [(node, slot) for node, slots in serving.gpus_of(site, name, role).items() for slot in slots]
        for name in names
        for role in ("prefill", "decode")
    }


def caps_w(site: Site, gpus: list[tuple[str, int]]) -> list[float]:
    enforced = site.enforced_w()
    return [enforced[node][slot] for node, slot in gpus]


def test_two_clusters_compete_and_a_third_waits_for_its_floors(two: Site, judged: Judge) -> None:
    site, gpus = two, held(two, "chat", "batch")
    high = [gpu for (name, _), each in gpus.items() if name == "chat" for gpu in each]
    low = [gpu for (name, _), each in gpus.items() if name == "batch" for gpu in each]
    assert len(high) == 4 and len(low) == 2
    limit_w = rack.limit_w(site, above_least_w=SHORT_W)
    with traffic(site, "chat") as asked, traffic(site, "batch") as also:
        site.limit(rack.NAME, limit_w)
        site.await_("caps within the limit", lambda: rack.may_draw_w(site) <= limit_w, timeout_s=SETTLED_S)
        site.await_(
            "the first of the two has what is above the floors",
            lambda: statistics.fmean(caps_w(site, high)) > statistics.fmean(caps_w(site, low)),
            timeout_s=SETTLED_S,
        )
        assert min(caps_w(site, [*high, *low])) >= FLOOR_W, "every floor is kept"
        site.apply(serving.inference_cluster(site, "late", prefill=1, decode=1, gpus=1, priority="Low"))
        site.await_("the third is told what is missing", lambda: admitted(site).get("status") == "False", timeout_s=SETTLED_S)
        said = admitted(site)
        assert said["reason"] == "InsufficientPower" and "are missing" in said["message"], said
        pods = site.get("pods", "-n", serving.NAMESPACE, "-l", "splitwatt.io/cluster=late")["items"]
        assert pods and all(pod["spec"].get("schedulingGates") for pod in pods), "its pods wait behind the gate"
        site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))
        site.await_ready("ic/late", "-n", serving.NAMESPACE, timeout_s=serving.READY_S)
    assert not asked.failed() and not also.failed(), [*asked.failed(), *also.failed()][:3]


def admitted(site: Site) -> Mapping[str, str]:
    return site.condition("ic/late", "-n", serving.NAMESPACE, condition="PowerAdmitted")


def test_a_limit_below_the_floors_is_kept(two: Site, judged: Judge) -> None:
    """A floor is a promise to the engines, a limit one to the breaker."""
    site = two
    site.cluster.kubectl("delete", "ic", "late", "-n", serving.NAMESPACE, "--ignore-not-found")
    gpus = [gpu for each in held(site, "chat", "batch").values() for gpu in each]
    limit_w = rack.limit_w(site, above_least_w=FLOORS_W // 2)
    with traffic(site, "chat") as asked:
        site.limit(rack.NAME, limit_w)
        took_s = site.await_("caps within the limit", lambda: rack.may_draw_w(site) <= limit_w, timeout_s=SETTLED_S)
        print(f"caps of floors that do not fit are within {limit_w} W {took_s:.1f} s after the patch")
        assert statistics.fmean(caps_w(site, gpus)) < FLOOR_W and min(caps_w(site, gpus)) >= rack.LEAST_W
        assert site.condition("pb", rack.NAME, condition="Feasible")["status"] == "True", "minimum caps fit"
        site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))
        site.await_("every floor again", lambda: min(caps_w(site, gpus)) >= FLOOR_W, timeout_s=SETTLED_S)
    assert not asked.failed(), asked.failed()[:3]


def test_a_limit_below_all_minima_is_said_and_ends_no_pod(two: Site) -> None:
    """No cap can keep it: every GPU goes to its lowest, and a person is told how many watts are missing."""
    site = two
    uids = {pod["metadata"]["uid"] for pod in site.get("pods", "-n", serving.NAMESPACE)["items"]}
    gpus = [(node, slot) for node in site.cluster.nodes() for slot in range(rack.GPUS)]
    with traffic(site, "chat") as asked:
        site.limit(rack.NAME, rack.limit_w(site, above_least_w=-500))
        site.await_("every GPU at its lowest cap", lambda: set(caps_w(site, gpus)) == {rack.LEAST_W}, timeout_s=SETTLED_S)
        site.await_(
            "a condition that says so",
            lambda: site.condition("pb", rack.NAME, condition="Feasible").get("reason") == "MinimumCapsAboveLimit",
            timeout_s=SETTLED_S,
        )
        said = site.condition("pb", rack.NAME, condition="Feasible")["message"]
        assert "W more than the limit" in said, said
        site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))
        site.await_ready("pb", rack.NAME, timeout_s=SETTLED_S)
    assert not asked.failed(), asked.failed()[:3]
    assert {pod["metadata"]["uid"] for pod in site.get("pods", "-n", serving.NAMESPACE)["items"]} == uids
