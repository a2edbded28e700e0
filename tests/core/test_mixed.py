"""Mixed replicas, which read prompts and write tokens by themselves: what they are rendered as, draw, and when they start."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import Pod, PodName, pod_fact
from splitwatt_core.admission.room import House
from splitwatt_core.admission.snapshot import AdmissionSnapshot, BudgetRoom, ClusterWant, HeldPod, NodeRoom, PodNeed
from splitwatt_core.budget.demand import GpuKind, demand_of_pod
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.known_labels import roles_of
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import (
    NO_POOL,
    PAIR,
    ClusterName,
    ClusterSpec,
    EngineSpec,
    EngineType,
    Role,
    RoleSpec,
    RouterSpec,
    RouterType,
    SpecError,
)
from splitwatt_core.gpus.profiles import PhaseProfile, Profile, builtin
from splitwatt_core.names import LABEL_LLMD_ROLE, LABEL_ROLE
from splitwatt_core.protocol.contract import Phase
from splitwatt_core.rendering.drift import digest
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_core.serving.provable import why_not

POOL = RoleSpec(2, 8, {"splitwatt.io/pool": "h100"})
OWN_ROUTER = RouterSpec(RouterType.NONE)
UNCHANGED = {
    "Deployment chat-decode": "a35a31a350d59fb0",
    "Deployment chat-prefill": "68708eac51413b37",
    "Deployment chat-router": "14301f1697e13fd5",
    "PodDisruptionBudget chat-decode": "bf81ff39cac2b823",
    "PodDisruptionBudget chat-prefill": "11fa3d3eda596ab9",
    "PodDisruptionBudget chat-router": "f03acb9d3d987d80",
    "Role chat-router": "b77aafade2816dfe",
    "RoleBinding chat-router": "5a697966399f72f3",
    "Service chat": "66ef0127d9444725",
    "Service chat-decode": "7fcfa25556e9fd1f",
    "Service chat-prefill": "34b36e5ab7d59763",
    "ServiceAccount chat-router": "7ad155011465f6d8",
}
"""Digests of a split cluster's objects as they were before there were mixed replicas."""


def cluster(**changes: Any) -> ClusterSpec:
    """Unsplit, but for what is changed."""
    given: dict[str, Any] = {"engine": EngineSpec(EngineType.VLLM), "mixed": POOL, **changes}
    return ClusterSpec(namespace="serving", name="chat", uid="7d0c", generation=3, model="m", **given)


def overflow(**changes: Any) -> ClusterSpec:
    return cluster(**{"prefill": POOL, "decode": POOL, "router": OWN_ROUTER, **changes})


def objects(spec: ClusterSpec) -> dict[tuple[str, str], dict[str, Any]]:
    context = RenderContext(vllm_image="vllm:test", emulated_image="twin:test", router_image="router:test")
    return {(m["kind"], m["metadata"]["name"]): m for m in render(spec, context)}


def engine(spec: ClusterSpec, role: Role = Role.MIXED) -> dict[str, Any]:
    container: dict[str, Any] = objects(spec)["Deployment", f"chat-{role}"]["spec"]["template"]["spec"]["containers"][0]
    return container


# ------------------------------------------------------------------------------------------------------------- the cluster


@given(
    pools=st.fixed_dictionaries({role.value: st.sampled_from([None, POOL]) for role in Role}), router=st.sampled_from(RouterType)
)
def test_a_cluster_is_split_or_unsplit_and_has_a_third_pool_only_where_a_router_can_use_it(
    pools: dict[str, RoleSpec | None], router: RouterType
) -> None:
    given_pools = {role for role in Role if pools[role.value] is not None}
    sayable = given_pools in ({*PAIR}, {Role.MIXED}) or (given_pools == set(Role) and router is RouterType.NONE)
    if not sayable:
        with pytest.raises(SpecError, match=r"two halves|prefill and decode, or mixed"):
            cluster(**pools, router=RouterSpec(router))
        return
    engine_type = EngineType.SGLANG if router is RouterType.SGLANG else EngineType.VLLM
    spec = cluster(**pools, engine=EngineSpec(engine_type), router=RouterSpec(router))
    assert set(spec.roles) == given_pools and spec.split is (Role.DECODE in given_pools)
    assert all(spec.role(role) is (pools[role.value] or NO_POOL) for role in Role)
    rendered = {labels[LABEL_ROLE] for m in objects(spec).values() if LABEL_ROLE in (labels := m["metadata"]["labels"])}
    assert rendered == {role.value for role in given_pools}


def test_a_third_pool_before_a_router_that_cannot_use_it_is_refused_with_what_to_change() -> None:
    with pytest.raises(SpecError, match=r"take mixed out, or prefill and decode, or set router\.type None"):
        overflow(router=RouterSpec(RouterType.VLLM))


# ------------------------------------------------------------------------------------------------------------ what is rendered


def test_an_unsplit_cluster_has_one_pool_and_a_router_before_it() -> None:
    found = objects(cluster())
    assert set(found) == {
        ("Service", "chat"), ("Deployment", "chat-router"), ("PodDisruptionBudget", "chat-router"),
        ("ServiceAccount", "chat-router"), ("Role", "chat-router"), ("RoleBinding", "chat-router"),
        ("Deployment", "chat-mixed"), ("Service", "chat-mixed"), ("PodDisruptionBudget", "chat-mixed"),
    }  # fmt: skip
    selects = {"splitwatt.io/cluster": "chat", "splitwatt.io/role": "mixed"}
    deployment = found["Deployment", "chat-mixed"]["spec"]
    assert deployment["replicas"] == 2 and deployment["selector"] == {"matchLabels": selects}
    assert deployment["template"]["spec"]["schedulingGates"] == [{"name": "splitwatt.io/power"}]
    assert deployment["template"]["spec"]["nodeSelector"] == POOL.node_selector
    assert found["PodDisruptionBudget", "chat-mixed"]["spec"]["selector"] == {"matchLabels": selects}
    assert found["Service", "chat-mixed"]["spec"]["clusterIP"] == "None"
    assert objects(cluster(router=OWN_ROUTER))["Service", "chat"]["spec"]["selector"] == selects


def test_an_unsplit_engine_has_no_connector_and_nothing_that_speaks_of_one() -> None:
    container = engine(cluster())
    assert container["args"] == ["m", "--port", "8000", "--tensor-parallel-size", "8"]
    assert [port["name"] for port in container["ports"]] == ["http"] and container["env"] == []
    assert [port["name"] for port in objects(cluster())["Service", "chat-mixed"]["spec"]["ports"]] == ["http"]
    words = container["lifecycle"]["preStop"]["exec"]["command"][-2:]
    assert words == ["5", "300"], "no lease of a KV cache to wait for, and the time of a long answer"


def test_beside_two_pools_a_mixed_engine_hands_on_and_fetches() -> None:
    args = engine(overflow())["args"]
    transfer = json.loads(args[args.index("--kv-transfer-config") + 1])
    assert transfer == {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}
    assert [port["name"] for port in engine(overflow())["ports"]] == ["http", "kv-side"]
    assert engine(overflow())["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["30", "300"], "its lease, as prefill's"
    assert objects(overflow())["Service", "chat"]["spec"]["selector"]["splitwatt.io/role"] == "decode", "as without it"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("gpus", [3, 5])
def test_groups_of_three_pools_divide_one_another(role: Role, gpus: int) -> None:
    with pytest.raises(SpecError, match="must divide one another"):
        objects(overflow(**{role.value: RoleSpec(1, gpus)}))


def test_llm_d_takes_a_mixed_pod_for_both_its_lists_and_so_do_we() -> None:
    labels = objects(overflow())["Deployment", "chat-mixed"]["spec"]["template"]["metadata"]["labels"]
    assert (labels[LABEL_ROLE], labels[LABEL_LLMD_ROLE]) == ("mixed", "prefill-decode")
    assert [phase for _, phase in roles_of(labels)] == [Role.MIXED.phase]


def test_a_cluster_without_mixed_replicas_is_rendered_to_the_byte_as_before_there_were_any() -> None:
    """Another word in it would start every engine of a fleet anew."""
    found = objects(overflow(mixed=None, router=RouterSpec()))
    assert {f"{kind} {name}": digest(m) for (kind, name), m in sorted(found.items())} == UNCHANGED
    for spec in (overflow(router=OWN_ROUTER), overflow(router=OWN_ROUTER, mixed=None)):
        assert digest(objects(spec)["Deployment", "chat-decode"]) == UNCHANGED["Deployment chat-decode"]


def test_nothing_is_to_be_proven_where_nothing_moves() -> None:
    reason, sentence = why_not(cluster()) or ("", "")
    assert reason == "Unsplit" and "no KV cache moves" in sentence
    assert why_not(cluster(mixed=None, prefill=POOL, decode=POOL)) is None


# ------------------------------------------------------------------------------------------------------------------- its watts

WATTS = st.integers(200, 700)


@st.composite
def profiles(draw: st.DrawFn) -> tuple[Profile, ...]:
    """Of one GPU, whichever phase of it is the hungrier; also one that knows a single phase, and none at all."""
    rows = []
    for phase in draw(st.sampled_from([(), (Phase.PREFILL,), (Phase.DECODE,), (Phase.PREFILL, Phase.DECODE)])):
        cliff_w, natural_w = sorted((draw(WATTS), draw(WATTS)))
        rows.append(PhaseProfile(phase, natural_w=natural_w, cliff_w=cliff_w, latency_points=((cliff_w, 1000),)))
    known = replace(builtin()[0], name="g", product_names=(), idle_w=80, min_cap_w=200, default_cap_w=700, phases=tuple(rows))
    return (known,) if rows else ()


@given(profiles(), st.none() | st.integers(1, 900), WATTS)
def test_a_mixed_pod_is_prefill_with_the_higher_floor_and_draw_of_both_phases(
    known: tuple[Profile, ...], ceiling_w: int | None, least_w: int
) -> None:
    kind = GpuKind("g", least_w, 700, 700)
    mixed, prefill, decode = (
        demand_of_pod(kind, PodFact("ns", "p", phase, 5, power_ceiling_w=ceiling_w, mixed=both), profiles=known)
        for phase, both in ((Phase.PREFILL, True), (Phase.PREFILL, False), (Phase.DECODE, False))
    )
    assert mixed.phase is Phase.PREFILL and mixed.priority == 5
    assert mixed.cliff_w == max(prefill.cliff_w, decode.cliff_w)
    assert mixed.natural_w == max(prefill.natural_w, decode.natural_w)
    assert kind.min_w <= mixed.cliff_w <= mixed.natural_w <= mixed.ceiling_w == prefill.ceiling_w


def pod(role: Role) -> Pod:
    return Pod(PodName("serving", "p"), "u", 1, "chat", role, 8)


@pytest.mark.parametrize("role", list(Role))
def test_a_pod_whose_pool_was_taken_out_keeps_what_it_was_asked_for_as_one_whose_cluster_is_gone(role: Role) -> None:
    without = cluster() if role in PAIR else cluster(mixed=None, prefill=POOL, decode=POOL)
    fact = pod_fact(pod(role), without)
    assert fact == pod_fact(pod(role), None) and fact is not None and fact.orphan
    mine = pod_fact(pod(role), overflow(**{role.value: replace(POOL, power_ceiling_w=400)}))
    assert mine is not None and mine.power_ceiling_w == 400 and not mine.orphan and mine.mixed is (role is Role.MIXED)


# ------------------------------------------------------------------------------------------------------------------ admission

CHAT = ClusterName("serving", "chat")
FLOOR_W, IDLE_W = 450.0, 200.0
REPLICA_W = 8 * (FLOOR_W - IDLE_W)


def need(role: Role, number: int = 0) -> PodNeed:
    name = f"{role}-{number}"
    return PodNeed(PodName("serving", name), name, CHAT, role, 8, {"h100": FLOOR_W}, created_s=float(number))


def rack(
    replicas: dict[Role, int], *waiting: PodNeed, room: float, nodes: int = 9, held: tuple[HeldPod, ...] = ()
) -> AdmissionSnapshot:
    """A rack with the watts of `room` replicas to spare."""
    budget = BudgetRoom("rack", room * REPLICA_W, selector=Selector({"rack": "a"}))
    free = tuple(NodeRoom(f"n{i}", "rack", {"rack": "a"}, 8, 8, "h100", IDLE_W, 1.0) for i in range(nodes))
    return AdmissionSnapshot((budget,), free, (ClusterWant(CHAT, 100, replicas),), waiting, held)


ALL = {Role.PREFILL: 1, Role.DECODE: 1, Role.MIXED: 2}


def admitted(house: AdmissionSnapshot) -> list[str]:
    return [admission.need.uid for admission in plan_admission(house).admissions]


@pytest.mark.parametrize("room", [0.5, 1, 2.5, 3])
def test_each_mixed_replica_is_let_in_by_itself(room: float) -> None:
    house = rack({Role.MIXED: 3}, *(need(Role.MIXED, i) for i in range(3)), room=room)
    assert admitted(house) == [f"mixed-{i}" for i in range(int(room))]
    verdict = plan_admission(house).verdicts[CHAT]
    assert (verdict.admitted, verdict.reason) == ((True, "Admitted") if room == 3 else (False, "InsufficientPower"))
    assert room < 3 or verdict.message == "The floors of 3 mixed replicas are reserved."


def test_no_pair_waits_for_a_mixed_pod_and_no_mixed_pod_for_a_pair() -> None:
    mixed, pair = (need(Role.MIXED, 0), need(Role.MIXED, 1)), (need(Role.PREFILL), need(Role.DECODE))
    assert admitted(rack(ALL, *mixed, room=9)) == ["mixed-0", "mixed-1"], "the pair's pods are still to be created"
    assert plan_admission(rack(ALL, *mixed, room=9)).verdicts[CHAT].message == (
        "Waits for the first prefill and decode pod to be created."
    )
    assert sorted(admitted(rack(ALL, *pair, room=9))) == ["decode-0", "prefill-0"], "and here the mixed ones"
    assert plan_admission(rack(ALL, *pair, room=9)).verdicts[CHAT].reason == "WaitingForPods"
    assert len(admitted(rack(ALL, *mixed, *pair, room=9))) == 4
    short = plan_admission(rack(ALL, need(Role.MIXED, 0), room=0.5)).verdicts[CHAT]
    assert short.reason == "InsufficientPower", "what is short is the news"


def test_a_mixed_pod_does_not_stand_for_half_a_pair() -> None:
    house = rack(ALL, need(Role.PREFILL), need(Role.DECODE), room=1.5, held=(HeldPod(need(Role.MIXED), "rack", node="n0"),))
    assert admitted(house) == [], "one alone of the two would serve nobody"


def test_a_pod_is_placed_with_the_other_half_of_its_pair_in_mind_and_a_mixed_one_with_nobody() -> None:
    mixed, prefill, decode = need(Role.MIXED), need(Role.PREFILL), need(Role.DECODE)
    house = House(rack(ALL, mixed, prefill, decode, room=9))
    assert (house.partner(prefill), house.partner(decode), house.partner(mixed)) == (decode, prefill, None)
    assert House(rack(ALL, mixed, prefill, room=9)).partner(prefill) is None
