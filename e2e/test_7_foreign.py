"""Serving that others brought, under the same budgets: classed by labels and rules, a pod that asks, a replica on two nodes.

Judged by what the GPUs enforce, and by which GPUs the kubelet gave to whom.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from ground import lws, others, rack
from ground.cluster import NotHereError
from ground.site import Site
from splitwatt_core.names import LABEL_RACK
from splitwatt_lab.errors import LabError
from splitwatt_lab.judge import Judge

ROOT = "row-a"
SETTLED_S = 60.0
MOVED_S = 90.0
LOOSE_W = 2800
FLOOR_W = 350
"""Of an H100 in either phase, and of a stranger on one: half its maximum."""
FLOOR_ABOVE_W = FLOOR_W - rack.LEAST_W
CRUMB_W = 2
"""What is left of a watt where watts are dealt in whole ones."""
DECODE_W, PREFILL_W = 399, rack.DEFAULT_W
"""What an H100 gets by its shipped profile where watts are plenty: what the phase draws, and a margin."""
DRAW_W = {"decode": 380, "prefill": 700}
"""Without the margin, which is the first that goes."""
PAIR_ABOVE_W = sum(DRAW_W.values()) - 2 * FLOOR_W
RULES: Sequence[Mapping[str, Any]] = (
    {"podSelector": {"matchLabels": {"team": "live"}}, "priority": "High"},
    {"podSelector": {"matchLabels": {"app": "batch"}}, "phase": "Decode"},
    {
        "podSelector": {"matchLabels": {"app": "train"}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": others.NAMESPACE}},
        "priority": -10,
    },
)
"""llm-d's pair comes first; a Deployment without a known label decodes; what trains comes last, and stays a stranger."""


@pytest.fixture
def ruled(installed: Site) -> Iterator[Site]:
    """Watts enough for everybody, the site's rules on the root, and nobody else's pods before and after."""
    site = installed
    site.judge()
    others.make_namespace(site, others.NAMESPACE)
    site.cluster.kubectl("delete", "ic", "--all", "-A", "--timeout=60s")
    site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))
    rules(site, RULES)
    yield site
    site.cluster.kubectl("delete", "deploy", "--all", "-n", others.NAMESPACE, "--timeout=60s")
    others.end(site)
    rules(site, None)


def rules(site: Site, workloads: Sequence[Mapping[str, Any]] | None) -> None:
    site.cluster.kubectl("patch", "pb", ROOT, "--type=merge", "-p", json.dumps({"spec": {"workloads": workloads}}))


def caps_w(site: Site, gpus: Sequence[tuple[str, int]]) -> list[float]:
    enforced = site.enforced_w()
    return [enforced[node][slot] for node, slot in gpus]


def start(site: Site, *deployments: Mapping[str, Any]) -> None:
    site.apply(*deployments)
    for each in deployments:
        name = each["metadata"]["name"]
        site.cluster.kubectl("rollout", "status", f"deploy/{name}", "-n", others.NAMESPACE, f"--timeout={others.READY_S:g}s")


def limit(site: Site, above_w: int, *, of: int) -> None:
    """So many watts above the floors of `of` GPUs, and nobody may draw more from then on."""
    limit_w = rack.limit_w(site, above_least_w=of * FLOOR_ABOVE_W + above_w)
    site.limit(rack.NAME, limit_w)
    site.await_("caps within the limit", lambda: rack.may_draw_w(site) <= limit_w, timeout_s=SETTLED_S)


def strangers(site: Site) -> str:
    message: str = site.condition("pb", ROOT, condition="OwnersKnown").get("message", "")
    return message


def test_foreign_pairs_a_plain_deployment_and_a_training_pod_share_a_budget_by_rule(ruled: Site, judged: Judge) -> None:
    site, node = ruled, ruled.cluster.nodes()[0]
    dynamo = {"nvidia.com/dynamo-component-type": "worker"}
    start(
        site,
        others.deployment(site, "llmd-decode", node=node, team="live", **{"llm-d.ai/role": "decode"}),
        others.deployment(site, "llmd-prefill", node=node, team="live", **{"llm-d.ai/role": "prefill"}),
        others.deployment(site, "dynamo-decode", node=node, **dynamo, **{"nvidia.com/dynamo-sub-component-type": "decode"}),
        others.deployment(site, "dynamo-prefill", node=node, **dynamo, **{"nvidia.com/dynamo-sub-component-type": "prefill"}),
        others.deployment(site, "batch", node=node),
        others.deployment(site, "train", node=node),
    )
    names = ("llmd-decode", "llmd-prefill", "dynamo-decode", "dynamo-prefill", "batch", "train")
    gpu = {name: gpus[0] for name in names if (gpus := others.gpus(site, f"app={name}"))}
    assert len(set(gpu.values())) == len(names), "six pods hold a GPU each"

    def caps() -> Mapping[str, float]:
        return dict(zip(names, caps_w(site, [gpu[name] for name in names]), strict=True))

    def await_caps(what: str, holds: Callable[[Mapping[str, float]], bool]) -> None:
        try:
            site.await_(what, lambda: holds(caps()), timeout_s=SETTLED_S)
        except LabError as error:
            raise LabError(f"{error}: {caps()}") from error

    wanted = {"decode": DECODE_W, "batch": DECODE_W, "prefill": PREFILL_W, "train": PREFILL_W}
    expected = {name: wanted[name.rpartition("-")[2]] for name in names}
    await_caps("each at what its phase asks for", lambda caps: caps == expected)
    one = f"1 pod of which no known label and no rule says a phase is given no less than prefill: {others.NAMESPACE}/train-"
    site.await_("the stranger is told, and nobody else", lambda: one in strangers(site), timeout_s=SETTLED_S)

    live, middle = ("llmd-decode", "llmd-prefill"), ("dynamo-decode", "dynamo-prefill", "batch")
    limit(site, PAIR_ABOVE_W + 200, of=len(names))
    await_caps(
        "who trains is at its floor, who comes first has all that it draws",
        lambda caps: (
            FLOOR_W <= caps["train"] <= FLOOR_W + CRUMB_W
            and all(caps[name] >= DRAW_W[name.rpartition("-")[2]] for name in live)
            and FLOOR_W + CRUMB_W < caps["dynamo-prefill"] < DRAW_W["prefill"]
        ),
    )
    limit(site, PAIR_ABOVE_W // 2, of=len(names))
    await_caps(
        "all others are at their floors, and what is left is the first one's",
        lambda caps: (
            all(FLOOR_W <= caps[name] <= FLOOR_W + CRUMB_W for name in (*middle, "train"))
            and statistics.fmean(caps[name] for name in live) > FLOOR_W
        ),
    )
    limit(site, -FLOOR_ABOVE_W // 2, of=len(names))
    await_caps(
        "the last one alone is below its floor",
        lambda caps: rack.LEAST_W <= caps["train"] < FLOOR_W and all(caps[name] >= FLOOR_W for name in (*live, *middle)),
    )
    site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))
    await_caps("as at first", lambda caps: caps == expected)


def test_a_foreign_pod_that_asks_starts_when_its_floor_is_kept_free(ruled: Site, judged: Judge) -> None:
    """Beside one that did not ask, and starts at once."""
    site, node = ruled, ruled.cluster.nodes()[0]
    one_gpu = {"nvidia.com/gpu": 1}
    site.limit(rack.NAME, rack.limit_w(site, above_least_w=FLOOR_ABOVE_W + FLOOR_ABOVE_W // 2))
    others.start(site, others.pod(site, "plain", node=node, resources=one_gpu, labels={"llm-d.ai/role": "decode"}))
    asks = others.pod(site, "asks", node=node, resources=one_gpu, labels={"llm-d.ai/role": "decode"}, gated=True)
    site.apply(asks)
    words = ("events", "-n", others.NAMESPACE, "--field-selector", "involvedObject.name=asks,reason=InsufficientPower")
    site.await_("it is told what is missing", lambda: bool(site.get(*words)["items"]), timeout_s=SETTLED_S)
    said = site.get(*words)["items"][0]["message"]
    assert "decode 156 W (1 GPU) in rack-a1 must be reserved" in said and "are missing" in said, said
    assert site.get("pod", "asks", "-n", others.NAMESPACE)["spec"]["schedulingGates"], "it waits"
    limit_w = rack.limit_w(site, above_least_w=2 * FLOOR_ABOVE_W + 10)
    site.limit(rack.NAME, limit_w)
    site.await_ready("pod", "asks", "-n", others.NAMESPACE, timeout_s=others.READY_S)
    both = [gpu for name in ("plain", "asks") for gpu in [(node, site.cluster.twin(node).uuids.index(others.told(site, name)))]]
    site.await_("both have their floors", lambda: min(caps_w(site, both)) >= FLOOR_W, timeout_s=SETTLED_S)
    assert rack.may_draw_w(site) <= limit_w


# ------------------------------------------------------------------------------------------------- one replica, two nodes


def limit_of_one_w(above_least_w: int) -> int:
    """Of a rack of one node."""
    return round((rack.GPUS * rack.LEAST_W + above_least_w) * rack.LOSSES) + rack.NODE_W + rack.FIXED_W


@pytest.fixture
def two_racks(ruled: Site) -> Iterator[Site]:
    """The second node hangs on a rack of its own, with a meter and a budget below the same root."""
    site = ruled
    if len(site.cluster.nodes()) < 2:
        raise NotHereError("one replica over two nodes needs two nodes with GPUs")
    first, second = site.cluster.nodes()[:2]
    meters, before = site.metering.meters, dict(site.metering.meters.racks)
    spec = site.get("pb", rack.NAME)["spec"]
    of_a2 = {
        **spec,
        "nodeSelector": {"matchLabels": {LABEL_RACK: "a2"}},
        "meter": {"selector": 'rack_power_watts{rack="a2"}', "maxAgeSeconds": 5},
        "limitWatts": limit_of_one_w(LOOSE_W),
    }
    site.apply({"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": {"name": "rack-a2"}, "spec": of_a2})
    move(site, second, "a2")
    meters.racks = {"a1": [first], "a2": [second]}
    names = ("rack-a1", "rack-a2")
    site.await_("a node in each", lambda: [nodes_of(site, name) for name in names] == [1, 1], timeout_s=MOVED_S)
    for name in names:
        site.await_ready("pb", name, timeout_s=MOVED_S)
    lws.install(site)
    yield site
    site.cluster.kubectl("delete", "leaderworkersets", "--all", "-n", others.NAMESPACE, "--timeout=60s")
    move(site, second, "a1")
    meters.racks = before
    site.await_("rack-a1 has both nodes again", lambda: nodes_of(site, rack.NAME) == 2, timeout_s=MOVED_S)
    site.cluster.kubectl("delete", "pb", "rack-a2", "--timeout=60s")


def move(site: Site, node: str, to: str) -> None:
    site.cluster.kubectl("label", "node", node, f"{LABEL_RACK}={to}", "--overwrite")


def nodes_of(site: Site, budget: str) -> int:
    found: int = site.get("pb", budget).get("status", {}).get("nodes", 0)
    return found


def test_one_replica_on_two_nodes_has_one_cap(two_racks: Site, judged: Judge) -> None:
    """A LeaderWorkerSet of its own controller: the rack with less room decides for both halves, and the other one's neighbour has
    what they leave."""
    site = two_racks
    first, second = site.cluster.nodes()[:2]
    labels = {"app": "wide", "llm-d.ai/role": "prefill"}
    spec = dict(others.pod(site, "wide", node=first, resources={"nvidia.com/gpu": 1})["spec"])
    del spec["nodeSelector"]
    apart = {"labelSelector": {"matchLabels": {"app": "wide"}}, "topologyKey": "kubernetes.io/hostname"}
    spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    site.apply(lws.leader_worker_set("wide", others.NAMESPACE, size=2, labels=labels, spec=spec))
    start(site, others.deployment(site, "neighbour", node=first, **{"llm-d.ai/role": "prefill"}))
    site.await_("leader and worker run", lambda: len(others.gpus(site, "app=wide")) == 2, timeout_s=others.READY_S)
    halves, [neighbour] = others.gpus(site, "app=wide"), others.gpus(site, "app=neighbour")
    assert {node for node, _ in halves} == {first, second}, "one on each node"
    pods = site.get("pods", "-n", others.NAMESPACE, "-l", "app=wide")["items"]
    assert len({pod["metadata"]["labels"][lws.GROUP_LABEL] for pod in pods}) == 1, "its webhook names the group"

    def await_caps(what: str, holds: Callable[[float, float, float], bool]) -> float:
        """Of both halves and the neighbour."""
        try:
            return site.await_(what, lambda: holds(*caps_w(site, [*halves, neighbour])), timeout_s=SETTLED_S)
        except LabError as error:
            raise LabError(f"{error}: {caps_w(site, [*halves, neighbour])}") from error

    both_w = 2 * FLOOR_W + 400
    site.limit("rack-a1", limit_of_one_w(both_w - 2 * rack.LEAST_W))

    def shared(one: float, other: float, beside: float) -> bool:
        return one == other > FLOOR_W + 100 and beside > FLOOR_W + 100 and both_w - 5 <= one + beside <= both_w

    await_caps("what rack-a1 has is shared, and both halves have the same", shared)
    least_w = FLOOR_W + 50
    site.limit("rack-a2", limit_of_one_w(least_w - rack.LEAST_W))
    took_s = await_caps(
        "both halves have what the rack has that was cut, and the neighbour what they cannot use",
        lambda one, other, beside: one == other and least_w - 5 <= one <= least_w and both_w - 5 <= one + beside <= both_w,
    )
    print(f"the cut of one rack is kept by both halves, and used by the neighbour, {took_s:.1f} s after the patch")
    site.limit("rack-a2", limit_of_one_w(LOOSE_W))
    await_caps("they rise together again", shared)
