"""Replicas over several nodes as they are rendered: who answers, who draws power, and what vLLM is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, Role, RoleSpec, RouterSpec, RouterType, SpecError
from splitwatt_core.rendering.objects import selector_labels
from splitwatt_core.rendering.render import RenderContext, pod_templates, render
from splitwatt_core.rendering.revision import RenderPlan, revision_of

GATE = [{"name": "splitwatt.io/power"}]


def cluster(decode: RoleSpec, **changes: Any) -> ClusterSpec:
    given: dict[str, Any] = {"engine": EngineSpec(EngineType.VLLM), "prefill": RoleSpec(1, 8), **changes}
    return ClusterSpec(namespace="serving", name="chat", uid="u", generation=1, model="m", decode=decode, **given)


def objects(spec: ClusterSpec) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["kind"], m["metadata"]["name"]): m for m in render(spec, RenderContext())}


def revision(spec: ClusterSpec) -> str:
    return revision_of(pod_templates(spec, RenderContext()))


def group_of(spec: ClusterSpec, role: Role = Role.DECODE) -> dict[str, Any]:
    """The spec of the role's LeaderWorkerSet."""
    found: dict[str, Any] = objects(spec)["LeaderWorkerSet", f"chat-{role}-{revision(spec)}"]["spec"]
    return found


def templates(spec: ClusterSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the decode role's leader and workers."""
    whole = group_of(spec)["leaderWorkerTemplate"]
    return whole["leaderTemplate"], whole["workerTemplate"]


def args_of(template: dict[str, Any]) -> list[str]:
    [container] = template["spec"]["containers"]
    args: list[str] = container["args"]
    return args


def told(args: list[str], flag: str) -> str:
    return args[args.index(flag) + 1]


WIDE = cluster(RoleSpec(3, 8, nodes_per_replica=4))


def test_a_group_of_pods_for_each_replica_instead_of_a_deployment() -> None:
    made = objects(WIDE)
    spec = group_of(WIDE)
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (3, 4)
    assert ("Deployment", "chat-decode") not in made and ("Deployment", "chat-prefill") in made
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {"maxUnavailable": 1, "maxSurge": 0}, "no GPUs beyond these"
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    narrow = objects(cluster(RoleSpec(3, 8)))
    assert ("Deployment", "chat-decode") in narrow and not [name for kind, name in narrow if kind == "LeaderWorkerSet"]


def test_every_pod_of_it_stands_behind_the_gate_and_asks_for_its_own_nodes_gpus() -> None:
    for template in templates(WIDE):
        assert template["spec"]["schedulingGates"] == GATE
        [container] = template["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"] == {"nvidia.com/gpu": "8"}


def test_the_leader_alone_is_known_as_an_engine() -> None:
    leader, worker = templates(WIDE)
    engine = selector_labels("chat", Role.DECODE)
    assert engine.items() <= leader["metadata"]["labels"].items()
    labels = worker["metadata"]["labels"]
    assert labels["splitwatt.io/worker-of"] == "decode" and labels["splitwatt.io/cluster"] == "chat"
    assert "splitwatt.io/role" not in labels and "llm-d.ai/role" not in labels, "a router would send it requests"
    [container] = worker["spec"]["containers"]
    assert not {"ports", "readinessProbe", "livenessProbe", "startupProbe"} & set(container)
    made = objects(WIDE)
    assert made["Service", "chat-decode"]["spec"]["selector"] == engine
    spared = [
        made["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"] for name in ("chat-decode", "chat-decode-workers")
    ]
    assert all(
        selector.items() <= template["metadata"]["labels"].items()
        for selector, template in zip(spared, (leader, worker), strict=True)
    )


def test_one_worker_at_a_time_may_be_drained_of_the_replicas_that_have_a_place() -> None:
    at = RenderPlan({}, {}, standing={Role.DECODE: 2})
    made = {m["metadata"]["name"]: m["spec"] for m in render(WIDE, RenderContext(), at) if m["kind"] == "PodDisruptionBudget"}
    nodes = WIDE.role(Role.DECODE).nodes_per_replica
    assert made["chat-decode"]["minAvailable"] == 1
    assert made["chat-decode-workers"]["minAvailable"] == 2 * (nodes - 1) - 1


def test_vllm_is_told_its_rank_and_the_leaders_address() -> None:
    leader, worker = (args_of(template) for template in templates(WIDE))
    for args in (leader, worker):
        assert told(args, "--tensor-parallel-size") == "32" and told(args, "--nnodes") == "4"
        assert told(args, "--master-addr") == "$(LWS_LEADER_ADDRESS)"
    assert told(leader, "--node-rank") == "0" and "--headless" not in leader
    assert told(worker, "--node-rank") == "$(LWS_WORKER_INDEX)" and "--headless" in worker
    assert "--nnodes" not in args_of(objects(WIDE)["Deployment", "chat-prefill"]["spec"]["template"])


def test_a_worker_stays_until_its_leader_has_ended_its_requests() -> None:
    leader, worker = (template["spec"] for template in templates(cluster(RoleSpec(1, 8, nodes_per_replica=2, drain_s=200))))
    waits_s = worker["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 200 <= waits_s < worker["terminationGracePeriodSeconds"] == leader["terminationGracePeriodSeconds"]


def test_an_overlay_is_laid_over_all_pods_of_a_group_and_gets_none_past_the_gate() -> None:
    overlay = {"spec": {"tolerations": [{"key": "team", "operator": "Exists"}]}}
    for template in templates(cluster(RoleSpec(1, 8, nodes_per_replica=2, template=overlay))):
        assert overlay["spec"]["tolerations"][0] in template["spec"]["tolerations"]
    with pytest.raises(SpecError, match=r"spec\.decode\.template\.spec\.schedulingGates must keep the gate"):
        render(cluster(RoleSpec(1, 8, nodes_per_replica=2, template={"spec": {"schedulingGates": None}})), RenderContext())


def test_what_several_nodes_cannot_be_had_with_is_refused() -> None:
    wide = RoleSpec(1, 8, nodes_per_replica=2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"engine": EngineSpec(EngineType.EMULATED)}, "spec.decode.nodesPerReplica must be 1 for engine.type Emulated"),
        ({"router": RouterSpec(RouterType.LLMD)}, "spec.decode.nodesPerReplica must be 1 before router LLMD"),
        ({"engine": EngineSpec(EngineType.VLLM, args=("--nnodes=3",))}, "spec.engine.args must not set --nnodes"),
        ({"prefill": wide, "engine": EngineSpec(EngineType.VLLM, args=("-pp", "2"))}, "spec.engine.args must not set -pp"),
        ({"prefill": RoleSpec(1, 3, nodes_per_replica=2)}, "must divide one another"),
    ]
    for changes, says in refused:
        with pytest.raises(SpecError, match=says):
            render(cluster(wide, **changes), RenderContext())
    for nodes in (0, 17):
        with pytest.raises(SpecError, match=f"nodesPerReplica must be between 1 and 16, not {nodes}"):
            RoleSpec(1, 8, nodes_per_replica=nodes)


def test_the_name_leaves_room_for_what_its_controller_puts_behind_it_and_is_no_services() -> None:
    """A leader's name is a StatefulSet's, whose pods bear it in a label with a hash behind; and the controller takes a Service of
    the set's name for its own, in which a leader that is not ready must be found."""
    for name in ("chat", "a-cluster-with-a-name-of-more-than-sixty-three-characters.and-a-dot"):
        spec = replace(WIDE, name=name)
        made = objects(spec)
        [group] = [name for kind, name in made if kind == "LeaderWorkerSet"]
        assert len(f"{group}-999-0123456789") <= 63 and ("Service", group) not in made


def test_other_nodes_make_a_revision_and_a_pool_on_one_node_keeps_its_own() -> None:
    """Also where an overlay replaces the arguments."""
    overlay = {"spec": {"containers": [{"name": "engine", "args": ["m"]}]}}
    of = {nodes: revision(cluster(RoleSpec(1, 8, nodes_per_replica=nodes, template=overlay))) for nodes in (1, 2, 4)}
    assert len(set(of.values())) == 3
    made = objects(WIDE)
    group = made["LeaderWorkerSet", f"chat-decode-{revision(WIDE)}"]
    for labels in (group["metadata"]["labels"], *(template["metadata"]["labels"] for template in templates(WIDE))):
        assert labels["splitwatt.io/revision"] == revision(WIDE)
    assert "splitwatt.io/nodes-per-replica" not in str(made["Deployment", "chat-prefill"])


def test_mixed_replicas_span_nodes_as_well() -> None:
    spec = replace(WIDE, prefill=None, decode=None, mixed=RoleSpec(2, 8, nodes_per_replica=2))
    group = group_of(spec, Role.MIXED)
    args = args_of(group["leaderWorkerTemplate"]["leaderTemplate"])
    assert group["replicas"] == 2 and told(args, "--tensor-parallel-size") == "16" and "--kv-transfer-config" not in args
    [router] = [m for (kind, name), m in objects(spec).items() if (kind, name) == ("Deployment", "chat-router")]
    assert f"splitwatt.io/revision={revision(spec)}" in router["spec"]["template"]["spec"]["containers"][0]["args"]


def test_a_prefill_replica_on_two_nodes_feeds_a_decode_replica_on_one() -> None:
    spec = cluster(RoleSpec(1, 8), prefill=RoleSpec(1, 8, nodes_per_replica=2))
    args = args_of(group_of(spec, Role.PREFILL)["leaderWorkerTemplate"]["leaderTemplate"])
    assert told(args, "--tensor-parallel-size") == "16"
    assert json.loads(told(args, "--kv-transfer-config"))["kv_role"] == "kv_producer"
