"""Own things only: what the operator's real token is refused although RBAC, which knows no owners, gives it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_api.convert import cluster_from_wire
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import EngineType, Role, RouterSpec, RouterType
from splitwatt_core.names import ANNOTATION_BUDGET, GATE_POWER, LABEL_MANAGED_BY
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_core.rendering.role_scale import role_scale
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_operator.cluster.slim import slim
from splitwatt_operator.serving.admission import gate_patch
from support.callers import Caller, caller, refused, taken
from support.upstream import install
from support.waiting import eventually

from .conftest import with_namespace

OURS = "/apis/splitwatt.io/v1alpha1"
SERVING = "serving"
GATE = {"name": GATE_POWER}
JSON_PATCH = "application/json-patch+json"
PLURALS = {
    "Deployment": "deployments", "Service": "services", "PodDisruptionBudget": "poddisruptionbudgets",
    "ServiceAccount": "serviceaccounts", "Role": "roles", "RoleBinding": "rolebindings",
    "InferencePool": "inferencepools", "LeaderWorkerSet": "leaderworkersets",
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", PLURALS)


def test_every_policy_is_bound_and_compiles_without_a_warning(installed: ControlPlane) -> None:
    root = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"

    def looked_at() -> bool:
        return all("observedGeneration" in item.get("status", {}) for item in installed.http.get(f"{root}ies").json()["items"])

    eventually("every policy is type-checked", looked_at)
    policies = installed.http.get(f"{root}ies").json()["items"]
    bound = {item["spec"]["policyName"] for item in installed.http.get(f"{root}ybindings").json()["items"]}
    assert {policy["metadata"]["name"] for policy in policies} == bound and len(bound) == 11
    assert [policy["status"]["typeChecking"] for policy in policies] == [{}] * 11


@pytest.fixture(scope="module")
def operator(installed: ControlPlane) -> Caller:
    return caller(installed, "splitwatt-operator")


@pytest.fixture(scope="module")
def rendered(installed: ControlPlane) -> dict[str, dict[str, Any]]:
    """By kind: what the operator's own code renders for a cluster that is there; `router`: the Deployment without a gate. The
    pool and the Role `llmd` are what another router needs, the LeaderWorkerSet what replicas over several nodes do."""
    install(installed, "InferencePool", "LeaderWorkerSet")
    with_namespace(installed, SERVING)
    role = {"replicas": 1, "gpusPerReplica": 2}
    spec = {"model": {"name": "m"}, "engine": {"type": "Emulated"}, "prefill": role, "decode": role}
    cluster = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "InferenceCluster", "metadata": {"name": "chat"}, "spec": spec}
    made = installed.http.post(f"{OURS}/namespaces/{SERVING}/inferenceclusters", json=cluster).raise_for_status().json()
    account = f"/api/v1/namespaces/{SERVING}/serviceaccounts/default"
    eventually("pods may be made", lambda: installed.http.get(account).status_code == 200)
    manifests = [dict(manifest) for manifest in render(cluster_from_wire(made), RenderContext())]
    router = next(m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == "chat-router")
    cluster_of = cluster_from_wire(made)
    other = render(replace(cluster_of, router=RouterSpec(RouterType.LLMD)), RenderContext())
    llmd = {m["kind"]: dict(m) for m in other if m["kind"] in ("InferencePool", "Role")}
    vllm = replace(cluster_of, engine=replace(cluster_of.engine, type=EngineType.VLLM))
    wide = render(replace(vllm, decode=replace(vllm.role(Role.DECODE), nodes_per_replica=2)), RenderContext())
    group = next(dict(m) for m in wide if m["kind"] == "LeaderWorkerSet")
    own = {manifest["kind"]: manifest for manifest in manifests}
    others = {"InferencePool": llmd["InferencePool"], "llmd": llmd["Role"], "LeaderWorkerSet": group}
    return own | {"router": router} | others


def path_of(manifest: Mapping[str, Any], name: str | None = None) -> str:
    version = manifest["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    meta = manifest["metadata"]
    return f"{root}/namespaces/{meta['namespace']}/{PLURALS[manifest['kind']]}/{name or meta['name']}"


def changed(manifest: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    return {**manifest, "metadata": {**manifest["metadata"], **metadata}}


@pytest.fixture
def bound_role(operator: Caller, rendered: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What RBAC compares with the operator's own rights before it takes a RoleBinding."""
    return taken(operator.patch(path_of(rendered["Role"]), rendered["Role"]))


@KINDS
@pytest.mark.usefixtures("bound_role")
def test_the_operator_makes_changes_and_removes_what_it_renders(
    operator: Caller, rendered: dict[str, dict[str, Any]], kind: str
) -> None:
    path = path_of(rendered[kind])
    taken(operator.patch(path, rendered[kind]))
    taken(operator.patch(path, changed(rendered[kind], annotations={"splitwatt.io/rendered-hash": "other"})))
    taken(operator.http.delete(path))


@KINDS
@pytest.mark.usefixtures("bound_role")
@pytest.mark.parametrize("lost", ["labels", "ownerReferences"])
def test_the_operator_puts_right_what_somebody_took_out(
    installed: ControlPlane, operator: Caller, rendered: dict[str, dict[str, Any]], kind: str, lost: str
) -> None:
    path = path_of(rendered[kind])
    made = taken(operator.patch(path, rendered[kind]))
    installed.http.patch(
        path, json={"metadata": {lost: None}}, headers={"Content-Type": "application/merge-patch+json"}
    ).raise_for_status()
    put_right = taken(operator.patch(path, rendered[kind]))
    assert put_right["metadata"][lost] == made["metadata"][lost]
    taken(operator.http.delete(path))


@KINDS
@pytest.mark.usefixtures("bound_role")
def test_the_operator_is_refused_what_others_made_and_a_person_is_not(
    installed: ControlPlane, operator: Caller, rendered: dict[str, dict[str, Any]], kind: str
) -> None:
    theirs = changed(rendered[kind], name="theirs", labels={"app": "theirs"}, ownerReferences=[])
    path = path_of(theirs)
    installed.kubectl("apply", "-f", "-", stdin=json.dumps(theirs))
    says = f"the operator may change or delete only a {kind} that it rendered for an InferenceCluster"
    refused(operator.patch(path, {**theirs, "metadata": {**theirs["metadata"], "annotations": {APPLIED: "{}"}}}), says)
    # Nor can it make it its own first.
    refused(operator.patch(path, changed(rendered[kind], name="theirs")), says)
    refused(operator.patch(path, [{"op": "add", "path": "/metadata/labels/a", "value": "b"}], JSON_PATCH), says)
    refused(operator.http.delete(path), says)
    installed.kubectl("label", PLURALS[kind], "theirs", "-n", SERVING, "note=by-the-administrator")
    installed.kubectl("delete", PLURALS[kind], "theirs", "-n", SERVING)


def controlled_by(kind: str, version: str) -> list[dict[str, Any]]:
    return [{"apiVersion": version, "kind": kind, "name": "x", "uid": "5f1d5a2e-0000-4000-8000-000000000000", "controller": True}]


@KINDS
@pytest.mark.usefixtures("bound_role")
@pytest.mark.parametrize(
    "metadata",
    [
        {"ownerReferences": []},
        {"ownerReferences": controlled_by("ReplicaSet", "apps/v1")},
        {"ownerReferences": controlled_by("InferenceCluster", "elsewhere.io/v1")},
        {"ownerReferences": [{**controlled_by("InferenceCluster", "splitwatt.io/v1alpha1")[0], "controller": False}]},
        {"labels": {"app": "mine"}},
        {"labels": {LABEL_MANAGED_BY: "Helm"}},
    ],
    ids=["no owner", "a foreign owner", "a foreign group", "no controller", "no label", "a foreign label"],
)
def test_the_operator_makes_nothing_that_no_cluster_controls(
    operator: Caller, rendered: dict[str, dict[str, Any]], kind: str, metadata: dict[str, Any]
) -> None:
    forged = changed(rendered[kind], name="forged", **metadata)
    refused(operator.patch(path_of(forged), forged), f"the operator may write only a {kind} that an InferenceCluster controls")
    taken(operator.patch(path_of(rendered[kind]), rendered[kind]))
    let_go = changed(rendered[kind], **metadata)
    refused(operator.http.put(path_of(let_go), json=let_go), "cannot update resource")
    taken(operator.http.delete(path_of(rendered[kind])))


def test_the_operator_makes_and_scales_role_scales_of_clusters_alone(installed: ControlPlane, operator: Caller) -> None:
    with_namespace(installed, SERVING)
    role = {"replicas": 1, "gpusPerReplica": 2}
    spec = {"model": {"name": "m"}, "engine": {"type": "Emulated"}, "prefill": role, "decode": role}
    cluster = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "InferenceCluster", "metadata": {"name": "scaled"}, "spec": spec}
    clusters, scales = (f"{OURS}/namespaces/{SERVING}/{plural}" for plural in ("inferenceclusters", "rolescales"))
    made = installed.http.post(clusters, json=cluster).raise_for_status().json()
    own = role_scale(cluster_from_wire(made), 1)
    told = [{"op": "replace", "path": "/spec/replicas", "value": 2}]
    path = f"{scales}/{own['metadata']['name']}"
    taken(operator.http.post(scales, json=own, params={"fieldManager": operator.manager}))
    assert taken(operator.patch(path, told, JSON_PATCH))["spec"]["replicas"] == 2
    theirs = {**own, "metadata": {"name": "theirs", "namespace": SERVING}}
    refused(operator.http.post(scales, json=theirs), "only a RoleScale that an InferenceCluster controls")
    installed.http.post(scales, json=theirs).raise_for_status()
    refused(operator.patch(f"{scales}/theirs", told, JSON_PATCH), "only a RoleScale that it rendered")
    installed.http.delete(f"{clusters}/scaled").raise_for_status()
    eventually("the cluster's own went with it", lambda: installed.http.get(path).status_code == 404)
    assert installed.http.delete(f"{scales}/theirs").status_code == 200, "and nobody else's did"


def test_the_operator_makes_no_pods_that_are_born_without_the_gate(operator: Caller, rendered: dict[str, dict[str, Any]]) -> None:
    deployment = json.loads(json.dumps(rendered["Deployment"]))
    deployment["spec"]["template"]["spec"]["schedulingGates"] = [{"name": "another/gate"}]
    refused(operator.patch(path_of(deployment), deployment), "only a Deployment whose pods are born behind the gate")
    # A claim may be a GPU's too.
    del deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    deployment["spec"]["template"]["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "gpu"}]
    refused(operator.patch(path_of(deployment), deployment), "only a Deployment whose pods are born behind the gate")


@pytest.mark.parametrize("part", ["leaderTemplate", "workerTemplate"])
def test_no_pod_of_a_group_is_born_without_the_gate(operator: Caller, rendered: dict[str, dict[str, Any]], part: str) -> None:
    group = json.loads(json.dumps(rendered["LeaderWorkerSet"]))
    del group["spec"]["leaderWorkerTemplate"][part]["spec"]["schedulingGates"]
    refused(operator.patch(path_of(group), group), "only a LeaderWorkerSet all of whose pods are born behind the gate")


def test_the_operator_makes_pods_without_a_gate_that_ask_for_no_gpu(
    operator: Caller, rendered: dict[str, dict[str, Any]]
) -> None:
    """The router's, and nothing that smuggles a GPU in."""
    router = json.loads(json.dumps(rendered["router"]))
    taken(operator.patch(path_of(router), router))
    container = router["spec"]["template"]["spec"]["containers"][0]
    router["spec"]["template"]["spec"]["initContainers"] = [
        {"name": "x", "image": "x", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}
    ]
    refused(operator.patch(path_of(router), router), "or ask for no GPU")
    del router["spec"]["template"]["spec"]["initContainers"]
    container["resources"] = {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}
    refused(operator.patch(path_of(router), router), "or ask for no GPU")
    taken(operator.http.delete(path_of(router)))


@pytest.mark.parametrize(
    "rule",
    [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]},
        {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": ["patch"]},
    ],
)
def test_a_router_may_see_pods_and_no_more(operator: Caller, rendered: dict[str, dict[str, Any]], rule: dict[str, Any]) -> None:
    """The operator itself may do each of these, so that RBAC alone would let it give them away."""
    for role in (rendered["Role"], rendered["llmd"]):
        given = {**role, "rules": [*role["rules"], rule]}
        refused(operator.patch(path_of(given), given), "only a Role that lets a router get, list and watch pods")


def test_llmds_picker_may_read_its_pool_too(operator: Caller, rendered: dict[str, dict[str, Any]]) -> None:
    """RBAC takes it, for the operator may do the same."""
    taken(operator.patch(path_of(rendered["llmd"]), rendered["llmd"]))
    taken(operator.http.delete(path_of(rendered["llmd"])))


@pytest.mark.usefixtures("bound_role")
@pytest.mark.parametrize(
    "change",
    [
        {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "other"}},
        {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "chat-router"}},
        {"subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": SERVING}]},
        {"subjects": [{"kind": "ServiceAccount", "name": "chat-router", "namespace": "elsewhere"}]},
        {"subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "chat-router"}]},
    ],
)
def test_a_routers_role_is_given_to_its_own_account_alone(
    installed: ControlPlane, operator: Caller, rendered: dict[str, dict[str, Any]], change: dict[str, Any]
) -> None:
    for kind, name in (
        ("Role", "other"),
        ("ClusterRole", "chat-router"),
    ):  # of no more rights: RBAC itself has nothing against it
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}}
        installed.kubectl("apply", "-n", SERVING, "-f", "-", stdin=json.dumps({**role, "rules": rendered["Role"]["rules"]}))
    binding = {**rendered["RoleBinding"], **change}
    refused(operator.patch(path_of(binding), binding), "only a RoleBinding that gives a router's Role to the account")


# -------------------------------------------------------------------------------------------------------- gates of pods


APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@pytest.fixture
def pod(installed: ControlPlane, rendered: dict[str, dict[str, Any]]) -> Iterator[Callable[..., dict[str, Any]]]:
    names: list[str] = []

    def make(gates: Sequence[dict[str, str]] = (GATE,)) -> dict[str, Any]:
        names.append(f"pod-{uuid.uuid4().hex[:8]}")
        spec = {"schedulingGates": list(gates), "containers": [{"name": "a", "image": "a"}]}
        metadata = {"name": names[-1], "labels": {"app": "a"}, "annotations": {APPLIED: "{}"}}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        made: dict[str, Any] = installed.http.post(f"/api/v1/namespaces/{SERVING}/pods", json=body).raise_for_status().json()
        return made

    yield make
    for name in names:
        # Not waited for: one has a finalizer that nobody takes away, and the garbage collector was quicker with another.
        installed.http.delete(f"/api/v1/namespaces/{SERVING}/pods/{name}", params={"gracePeriodSeconds": 0})


def pod_path(made: Mapping[str, Any]) -> str:
    return f"/api/v1/namespaces/{SERVING}/pods/{made['metadata']['name']}"


@pytest.mark.parametrize("gates", [[GATE], [GATE, {"name": "kueue.x-k8s.io/admission"}]], ids=["ours alone", "beside another's"])
def test_the_operator_lifts_its_gate(operator: Caller, pod: Callable[..., dict[str, Any]], gates: list[dict[str, str]]) -> None:
    made = pod(gates)
    patch = gate_patch(dict(slim("Pod", made)), leaf="rack-a1", selector=Selector({"splitwatt.io/rack": "a1"}))
    lifted = taken(operator.patch(pod_path(made), patch, JSON_PATCH))
    assert lifted["spec"].get("schedulingGates", []) == gates[1:]
    assert lifted["metadata"]["annotations"] == {APPLIED: "{}", ANNOTATION_BUDGET: "rack-a1"}, "also what the store leaves out"
    says = "the operator may change only a pod that waits behind the gate"
    again = [{"op": "add", "path": "/metadata/annotations/c", "value": "d"}]
    refused(operator.patch(pod_path(made), again, JSON_PATCH), says)


LIFT = {"op": "replace", "path": "/spec/schedulingGates", "value": [{"name": "b/b"}]}


@pytest.mark.parametrize(
    "patch",
    [
        [{"op": "replace", "path": "/spec/containers/0/image", "value": "mine"}],
        [LIFT, {"op": "replace", "path": "/spec/containers/0/image", "value": "mine"}],
        [{"op": "remove", "path": "/spec/schedulingGates"}],
        [{"op": "replace", "path": "/spec/schedulingGates", "value": [GATE]}],
        [LIFT, {"op": "replace", "path": "/metadata/labels/app", "value": "mine"}],
        [LIFT, {"op": "add", "path": "/metadata/labels/b", "value": "mine"}],
        [
            LIFT,
            {"op": "replace", "path": "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration", "value": "mine"},
        ],
        [LIFT, {"op": "remove", "path": "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"}],
        [LIFT, {"op": "add", "path": "/metadata/annotations/c", "value": "mine"}],
        [LIFT, {"op": "add", "path": "/metadata/finalizers", "value": ["mine.io/mine"]}],
        [LIFT, {"op": "add", "path": "/metadata/ownerReferences", "value": controlled_by("ReplicaSet", "apps/v1")}],
        [LIFT, {"op": "add", "path": "/spec/tolerations/-", "value": {"key": "mine", "operator": "Exists"}}],
        [LIFT, {"op": "add", "path": "/spec/nodeSelector", "value": {"kubernetes.io/hostname": "mine"}}],
        [LIFT, {"op": "add", "path": "/spec/activeDeadlineSeconds", "value": 1}],
    ],
    ids=lambda patch: ", ".join(f"{step['op']} {step['path']}" for step in patch),
)
def test_with_its_gate_the_operator_changes_nothing_else(
    installed: ControlPlane, operator: Caller, pod: Callable[..., dict[str, Any]], patch: list[dict[str, Any]]
) -> None:
    made = pod([GATE, {"name": "b/b"}])
    refused(operator.patch(pod_path(made), patch, JSON_PATCH), "the operator may only lift the gate splitwatt.io/power")
    # The API server itself would have taken it: a person may.
    taken(installed.http.patch(pod_path(made), content=json.dumps(patch), headers={"Content-Type": JSON_PATCH}))


def test_the_operator_is_refused_pods_of_others(operator: Caller, pod: Callable[..., dict[str, Any]]) -> None:
    made = pod([{"name": "b/b"}])
    patch = [{"op": "add", "path": "/metadata/annotations/c", "value": "d"}]
    refused(operator.patch(pod_path(made), patch, JSON_PATCH), "the operator may change only a pod that waits behind the gate")
