"""How accepted objects behave on the real API server: defaults, transitions, scale, columns, and the contract's way through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_api.node_power import NodePower
from splitwatt_core.conditions import Condition
from splitwatt_core.names import GROUP_VERSION
from splitwatt_core.protocol.contract import (
    GRANTS_PER_TERM,
    MAX_TERM,
    GpuStatus,
    Grant,
    Health,
    Mode,
    Phase,
    Spec,
    Status,
    Workload,
    node_power_from_wire,
    node_power_to_apply,
    status_to_wire,
)
from splitwatt_core.protocol.terms import MAX_RISE
from splitwatt_core.protocol.would import WouldBe
from splitwatt_lab.controlplane import ControlPlane

UUIDS = ("GPU-6f1c0a", "GPU-77aa01")


@pytest.fixture
def objects(crds: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane; this module's cluster-scoped objects are deleted afterwards."""
    yield crds
    for kind in ("nodepowers", "powerbudgets"):
        crds.kubectl("delete", kind, "-l", "test=crds-objects")


def create(plane: ControlPlane, kind: str, name: str, spec: dict[str, Any] | None, namespace: str = "") -> dict[str, Any]:
    meta = {"name": name, "labels": {"test": "crds-objects"}, **({"namespace": namespace} if namespace else {})}
    body = {"apiVersion": "splitwatt.io/v1alpha1", "kind": kind, "metadata": meta}
    if spec is not None:
        body["spec"] = spec
    made: dict[str, Any] = json.loads(plane.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(body)).stdout)
    return made


def patch(plane: ControlPlane, what: str, body: Any, *more: str) -> tuple[bool, str]:
    """Merge-patch; (taken, what kubectl said)."""
    result = plane.kubectl("patch", *what.split(), "--type=merge", "-p", json.dumps(body), *more, check=False)
    return result.returncode == 0, result.stdout + result.stderr


def read(plane: ControlPlane, *what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plane.kubectl("get", *what, "-o", "json").stdout)
    return found


# ------------------------------------------------------------------------------------------------------------ defaults


def test_a_small_cluster_is_filled_in(objects: ControlPlane, namespace: str) -> None:
    pool = {"replicas": 2}
    spec = {"model": {"name": "m"}, "engine": {"type": "VLLM"}, "prefill": pool, "decode": pool}
    made = create(objects, "InferenceCluster", "small", spec, namespace)["spec"]
    assert made["priority"] == "High"
    assert made["engine"]["port"] == 8000
    assert made["decode"]["gpusPerReplica"] == 1
    assert made["kvTransfer"] == {"connector": "NixlConnector", "sideChannelPort": 5600, "onFailure": "Recompute"}


@pytest.mark.parametrize("router", ["SGLang", "None"])
def test_sglang_stands_behind_its_own_router_or_none(objects: ControlPlane, namespace: str, router: str) -> None:
    pool = {"replicas": 1, "gpusPerReplica": 8}
    spec = {"model": {"name": "m"}, "engine": {"type": "SGLang"}, "prefill": pool, "decode": pool, "router": {"type": router}}
    made = create(objects, "InferenceCluster", f"sglang-{router.lower()}", spec, namespace)["spec"]
    assert (made["engine"]["type"], made["router"]["type"]) == ("SGLang", router)


def test_a_small_budget_is_filled_in(objects: ControlPlane) -> None:
    selector = {"matchLabels": {"rack": "x"}}
    made = create(
        objects,
        "PowerBudget",
        "small",
        {
            "limitWatts": 9_000,
            "nodeSelector": selector,
            "nonGpuWattsPerNode": 0,
            "unmanagedWattsPerNode": 0,
            "meter": {"selector": "m"},
        },
    )["spec"]
    assert made["meter"] == {"selector": "m", "aggregate": "Sum", "expectedSeries": 1, "maxAgeSeconds": 5}
    assert (made["limitGraceSeconds"], made["settleMilliseconds"], made["reserveWatts"]) == (5, 500, 0)
    # Not filled in, so that a budget below a root can be told from one that says what only the root may say.
    assert not made.keys() & {"mode", "policy"}


# ------------------------------------------------------------------------------------------------- an emergency is heard


def test_a_cut_below_the_reserve_is_never_refused(objects: ControlPlane) -> None:
    create(objects, "PowerBudget", "cut", {"limitWatts": 9_000, "reserveWatts": 2_400})
    assert patch(objects, "pb cut", {"spec": {"limitWatts": 1_000}})[0]
    # ... and the operator can still write what it makes of it.
    status = {"status": {"limitInForceWatts": 1_000, "posture": "Brake"}}
    assert patch(objects, "pb cut", status, "--subresource=status")[0]
    taken, said = patch(objects, "pb cut", {"spec": {"reserveWatts": 2_500}})
    assert not taken
    assert "reserveWatts must be below limitWatts" in said


def test_a_cut_below_what_is_kept_for_nodes_to_come_is_never_refused(objects: ControlPlane) -> None:
    grows = {"maxNodes": 2, "gpusPerNode": 8}
    watts = {"nonGpuWattsPerNode": 0, "unmanagedWattsPerNode": 4_000}
    leaf = {"nodeSelector": {"matchLabels": {"rack": "grows"}}, **watts, "elastic": grows}
    create(objects, "PowerBudget", "grows", {"limitWatts": 9_000, **leaf})
    assert patch(objects, "pb grows", {"spec": {"limitWatts": 5_000}})[0]
    taken, said = patch(objects, "pb grows", {"spec": {"elastic": {"maxNodes": 3}}})
    assert not taken and "lower elastic.maxNodes" in said
    assert patch(objects, "pb grows", {"spec": {"elastic": {"maxNodes": 1}}})[0]


# ------------------------------------------------------------------------------------------------------- the fence (R2)


def fenced(plane: ControlPlane, name: str) -> None:
    create(plane, "NodePower", name, None)  # R3: created without grants
    taken, said = patch(plane, f"np {name}", {"spec": {"term": 4, "forUID": "u", "gpus": []}})
    assert taken, said


def test_a_term_never_falls_and_no_slip_uses_them_up(objects: ControlPlane) -> None:
    fenced(objects, "fence")
    taken, said = patch(objects, "np fence", {"spec": {"term": 3}})
    assert not taken
    assert "spec.term never falls" in said
    assert patch(objects, "np fence", {"spec": {"term": 4, "mode": "Observe"}})[0]
    assert patch(objects, "np fence", {"spec": {"term": 5}})[0]
    assert not patch(objects, "np fence", {"spec": {"term": 4}})[0]
    taken, said = patch(objects, "np fence", {"spec": {"term": MAX_TERM}})
    assert not taken
    assert f"spec.term rises by {MAX_RISE} at most" in said


@pytest.mark.parametrize("body", [{"spec": None}, {"spec": {"term": None}}], ids=["spec", "term"])
def test_the_fence_cannot_be_taken_down(objects: ControlPlane, body: dict[str, Any]) -> None:
    fenced(objects, "fence")
    taken, said = patch(objects, "np fence", body)
    assert not taken
    assert "spec cannot be removed" in said or "spec.term: Required value" in said


def test_a_replaced_object_is_fenced_too(objects: ControlPlane) -> None:
    fenced(objects, "fence")
    bare = read(objects, "np", "fence")
    del bare["spec"]
    result = objects.kubectl("replace", "-f", "-", stdin=json.dumps(bare), check=False)
    assert result.returncode != 0
    assert "spec cannot be removed: delete the NodePower to release the node's charge" in result.stderr


# -------------------------------------------------------------------------------------------------------- the contract

SPEC = Spec(
    term=MAX_TERM,
    for_uid="",
    mode=Mode.STRICT,
    lease_name="row-a",
    node_limit_w=6_400,
    budgets=("rack-b", "rack-a"),
    gpus=(
        Grant(UUIDS[0], MAX_TERM * GRANTS_PER_TERM + 17, 450, 380, 520, 1_410, Phase.PREFILL),
        Grant(UUIDS[1], MAX_TERM * GRANTS_PER_TERM + 18, 200, 200, 700),
    ),
)
STATUS = Status(
    observed_term=MAX_TERM,
    boot_id="2c1e",
    gpus=(
        GpuStatus(UUIDS[0], SPEC.gpus[0].grant, 450, 450, 200, 700, 700, "H100", Health.OK, Workload("serving", "chat-0")),
        GpuStatus(UUIDS[1], 0, None, None, 200, 700, 700, "H100", Health.LOST),
    ),
    conditions=(Condition("Ready", True, "Following", "grants are followed", "2026-01-01T00:00:00Z"),),
)


def test_the_contract_goes_through_unchanged(objects: ControlPlane) -> None:
    made = node_power_from_wire(create(objects, "NodePower", "n1", None))
    spec = replace(SPEC, for_uid=made.uid)
    body = node_power_to_apply("n1", made.uid, made.resource_version, spec)
    objects.kubectl(
        "apply", "--server-side", "--field-manager=splitwatt-operator", "--validate=strict", "-f", "-", stdin=json.dumps(body)
    )
    status = replace(STATUS, observed_uid=made.uid)
    taken, said = patch(objects, "np n1", {"status": status_to_wire(status)}, "--subresource=status")
    assert taken, said
    raw = read(objects, "np", "n1")
    back = node_power_from_wire(raw)
    assert back.spec == spec
    assert back.status == status
    assert NodePower.from_wire(raw).to_wire()["spec"] == raw["spec"]  # the models know every field of it


def test_what_would_be_granted_goes_through_in_observe_alone(objects: ControlPlane) -> None:
    made = node_power_from_wire(create(objects, "NodePower", "n2", None))
    would = (WouldBe(UUIDS[0], 450, 1_410), WouldBe(UUIDS[1], 200))
    spec = replace(SPEC, for_uid=made.uid, mode=Mode.OBSERVE, would=would)
    apply = ("apply", "--server-side", "--field-manager=splitwatt-operator", "--validate=strict", "-f", "-")
    body = node_power_to_apply("n2", made.uid, made.resource_version, spec)
    objects.kubectl(*apply, stdin=json.dumps(body))
    raw = read(objects, "np", "n2")
    assert node_power_from_wire(raw).spec == spec
    assert NodePower.from_wire(raw).to_wire()["spec"] == raw["spec"]
    taken, said = patch(objects, "np n2", {"spec": {"mode": "Strict"}})
    assert not taken and "wouldBe is told in mode Observe only" in said
    assert not patch(objects, "np n2", {"spec": {"mode": "Release", "wouldBe": []}})[0], "no agent is told of it"


def test_a_stale_version_is_refused(objects: ControlPlane) -> None:
    made = node_power_from_wire(create(objects, "NodePower", "n1", None))
    apply = ("apply", "--server-side", "--field-manager=splitwatt-operator", "-f", "-")
    body = json.dumps(node_power_to_apply("n1", made.uid, made.resource_version, replace(SPEC, for_uid=made.uid)))
    objects.kubectl(*apply, stdin=body)
    late = json.dumps(node_power_to_apply("n1", made.uid, made.resource_version, replace(SPEC, for_uid=made.uid, gpus=())))
    result = objects.kubectl(*apply, stdin=late, check=False)
    assert result.returncode != 0
    assert "the object has been modified" in result.stderr


# ------------------------------------------------------------------------------------------------------ scale, columns


def test_scale_moves_decode_replicas_alone(objects: ControlPlane, namespace: str) -> None:
    pool = {"replicas": 2}
    spec = {"model": {"name": "m"}, "engine": {"type": "VLLM"}, "prefill": pool, "decode": pool}
    create(objects, "InferenceCluster", "chat", spec, namespace)
    objects.kubectl("scale", "ic", "chat", "-n", namespace, "--replicas=5")
    found = read(objects, "ic", "chat", "-n", namespace)
    assert (found["spec"]["prefill"]["replicas"], found["spec"]["decode"]["replicas"]) == (2, 5)
    status = {"status": {"decode": {"replicas": 3, "labelSelector": "splitwatt.io/cluster=chat"}}}
    assert patch(objects, f"ic chat -n {namespace}", status, "--subresource=status")[0]
    path = f"/apis/splitwatt.io/v1alpha1/namespaces/{namespace}/inferenceclusters/chat/scale"
    scale = json.loads(objects.kubectl("get", "--raw", path).stdout)
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (5, 3)
    assert scale["status"]["selector"] == "splitwatt.io/cluster=chat"


@pytest.mark.parametrize("how", [(), ("--server-side",)])
def test_a_manifest_without_decodes_replicas_undoes_no_scale(objects: ControlPlane, namespace: str, how: tuple[str, ...]) -> None:
    """GitOps applies it again and again, by either way of applying."""
    spec = {"model": {"name": "m"}, "engine": {"type": "VLLM"}, "prefill": {"replicas": 2}, "decode": {"gpusPerReplica": 1}}
    meta = {"name": "chat", "namespace": namespace}
    manifest = {"apiVersion": GROUP_VERSION, "kind": "InferenceCluster", "metadata": meta, "spec": spec}

    def applied() -> int:
        objects.kubectl("apply", *how, "-f", "-", stdin=json.dumps(manifest))
        replicas: int = read(objects, "ic", "chat", "-n", namespace)["spec"]["decode"]["replicas"]
        return replicas

    assert applied() == 1
    objects.kubectl("scale", "ic", "chat", "-n", namespace, "--replicas=4")
    assert applied() == 4
    spec["decode"] = {"gpusPerReplica": 2}
    assert applied() == 4, "another change of the same pool"


def test_an_unsplit_cluster_has_no_scale_and_is_not_split_by_one(objects: ControlPlane, namespace: str) -> None:
    spec = {"model": {"name": "m"}, "engine": {"type": "VLLM"}, "mixed": {"replicas": 2}}
    create(objects, "InferenceCluster", "chat", spec, namespace)
    told = objects.kubectl("scale", "ic", "chat", "-n", namespace, "--replicas=5", check=False)
    assert told.returncode != 0 and "prefill and decode are two halves" in told.stderr, told.stderr
    assert "no such key" not in told.stderr, "one clear sentence"
    found = read(objects, "ic", "chat", "-n", namespace)
    assert "decode" not in found["spec"] and found["spec"]["mixed"]["replicas"] == 2


def test_columns_show_the_numbers(objects: ControlPlane) -> None:
    create(objects, "PowerBudget", "row-z", {"limitWatts": 50_000})
    status = {
        "limitInForceWatts": 50_001,
        "chargeWatts": 49_002,
        "measuredWatts": 41_003,
        "mode": "Observe",
        "posture": "Trim",
        "gpus": 64,
        "conditions": [
            {
                "type": "WithinBudget",
                "status": "True",
                "reason": "Within",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00.5Z",
            }
        ],
    }
    assert patch(objects, "pb row-z", {"status": status}, "--subresource=status")[0]
    header, row = objects.kubectl("get", "pb", "row-z").stdout.splitlines()
    for column in ("PARENT", "MODE", "LIMIT W", "IN FORCE W", "CHARGE W", "MEASURED W", "POSTURE", "WITHIN", "GPUS", "AGE"):
        assert column in header
    assert row.split()[:9] == ["row-z", "Observe", "50000", "50001", "49002", "41003", "Trim", "True", "64"]

    made = node_power_from_wire(create(objects, "NodePower", "n9", None))
    assert patch(objects, "np n9", {"spec": {"term": 4, "forUID": made.uid, "budgets": ["rack-a", "rack-b"], "gpus": []}})[0]
    assert patch(objects, "np n9", {"status": status_to_wire(replace(STATUS, gpus=STATUS.gpus[:1]))}, "--subresource=status")[0]
    row = objects.kubectl("get", "np", "n9", "--no-headers").stdout
    assert row.split()[:6] == ["n9", '["rack-a","rack-b"]', "4", "1", "1", "450"]
    names = objects.kubectl("get", "splitwatt", "-A", "-o", "name").stdout
    assert {"powerbudget.splitwatt.io/row-z", "nodepower.splitwatt.io/n9"} <= set(names.split())


def test_a_sum_over_unreadable_limits_is_left_out() -> None:
    wire = status_to_wire(STATUS)
    assert (wire["gpuCount"], wire["healthyGpuCount"]) == (2, 1)
    assert "enforcedCapWattsTotal" not in wire
