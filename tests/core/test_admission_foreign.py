"""Pods of nobody's InferenceCluster that carry our gate: admitted by what labels and rules say, as everybody else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.admission.foreign import asker_of, pod_of
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.site import Site, snapshot_of
from splitwatt_core.budget.demand import GpuKind, demand_of_pod
from splitwatt_core.budget.facts import CountedFloor, NodeFact
from splitwatt_core.budget.tree import BudgetSpec, Selector, WorkloadRule
from splitwatt_core.budget.workloads import OwnerFact, pod_fact_of
from splitwatt_core.clusters import ClusterName, Role
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.protocol.contract import GpuStatus, Phase
from support.admission_site import CLIFF_W, H100, KIND, leaf, pod, site

DECODE, PREFILL = {"llm-d.ai/role": "decode"}, {"llm-d.ai/role": "prefill"}
FLOOR_W = 8 * (CLIFF_W - 200) * 1.04


def asks(name: str, labels: dict[str, str], **rest: Any) -> Pod:
    """A foreign pod of 8 GPUs behind our gate."""
    fields = {"gpus": 8, "gated": True, **rest}
    return Pod(PodName("s", name), f"uid-{name}", 1, "", None, labels=labels, **fields)


def room(*pods: Pod, watts: float = 1e4, **changes: Any) -> Site:
    return site(*pods, clusters={}, floor_room_w={"rack-a": watts}, **changes)


def reasons(whole: Site) -> dict[str, str]:
    verdicts = plan_admission(snapshot_of(whole)).verdicts
    return {asked.name: verdict.reason for name, verdict in verdicts.items() if (asked := pod_of(name)) is not None}


def test_an_asker_is_never_taken_for_an_inference_cluster() -> None:
    assert pod_of(asker_of(PodName("s", "chat"))) == PodName("s", "chat")
    assert pod_of(ClusterName("s", "chat")) is None and asker_of(PodName("s", "chat")) != ClusterName("s", "chat")


def test_it_is_let_in_where_there_is_room_and_waits_with_the_numbers_where_there_is_none() -> None:
    plan = plan_admission(snapshot_of(room(asks("d", DECODE))))
    [admission] = plan.admissions
    assert (admission.need.pod.name, admission.leaf, round(admission.reservation_w, 6)) == ("d", "rack-a", FLOOR_W)
    short = snapshot_of(room(asks("d", DECODE), watts=FLOOR_W - 1))
    plan = plan_admission(short)
    [verdict] = plan.verdicts.values()
    assert plan.admissions == () and verdict.reason == "InsufficientPower"
    assert "decode 1248 W (8 GPUs) in rack-a must be reserved" in verdict.message and "1 W are missing" in verdict.message


def test_whom_nothing_gives_a_phase_waits_and_is_told_what_to_change() -> None:
    assert reasons(room(asks("train", {"app": "train"}))) == {"train": "NoPhase"}
    assert reasons(room(asks("router", {"llm-d.ai/role": "router"}))) == {"router": "NoPhase"}
    rank = WorkloadRule(pods=Selector({"app": "train"}), priority=100)
    ranked = room(asks("train", {"app": "train"}), budgets={"rack-a": leaf("rack-a", "a", workloads=(rank,))})
    assert reasons(ranked) == {"train": "NoPhase"}, "a rank is no floor"
    classes = replace(rank, phase=Phase.DECODE)
    assert reasons(replace(ranked, budgets={"rack-a": leaf("rack-a", "a", workloads=(classes,))})) == {"train": "Admitted"}


def test_a_rule_that_chooses_by_namespace_is_waited_for_until_that_is_read() -> None:
    rule = WorkloadRule(namespaces=Selector({"team": "a"}), phase=Phase.DECODE)
    ruled = room(asks("x", {}), budgets={"rack-a": leaf("rack-a", "a", workloads=(rule,))})
    assert reasons(ruled) == {"x": "NamespaceNotRead"}
    assert reasons(replace(ruled, spaces={"s": {"team": "a"}})) == {"x": "Admitted"}
    assert reasons(replace(ruled, spaces={"s": {"team": "b"}})) == {"x": "NoPhase"}


def test_who_did_not_ask_is_neither_let_in_nor_reserved_for() -> None:
    bare = asks("bare", DECODE, gated=False)
    snapshot = snapshot_of(room(bare, asks("gone", DECODE, terminating=True), asks("over", DECODE, ended=True)))
    assert snapshot.waiting == snapshot.held == snapshot.clusters == () and not snapshot.refused


def test_other_gates_are_decided_first() -> None:
    assert reasons(room(asks("d", DECODE, other_gates=("kueue.x-k8s.io/admission",)))) == {"d": "WaitingForOtherGates"}


def test_it_stays_reserved_until_the_floor_room_counts_it() -> None:
    past = asks("d", DECODE, gated=False, leaf="rack-a")
    waits = asks("e", DECODE)
    full = room(past, waits, watts=2 * FLOOR_W - 1)
    assert reasons(full) == {"e": "InsufficientPower"}
    bound = replace(past, node="n1")
    counted = replace(full, pods={p.name: p for p in (bound, waits)}, counted={("s", "d"): CountedFloor(8, 8 * CLIFF_W)})
    counted = replace(counted, floor_room_w={"rack-a": FLOOR_W})
    assert reasons(counted) == {"e": "Admitted"}, "what it counts is not reserved twice"
    assert {n.name: n.free_gpus for n in snapshot_of(counted).nodes} == {"n1": 0, "n2": 8}
    lost = room(replace(past, labels={}), waits, watts=2 * FLOOR_W - 1)
    assert reasons(lost) == {"e": "InsufficientPower"}, "a label that vanishes frees no watt"


def test_rules_decide_who_comes_first_beside_a_cluster() -> None:
    """One pod's room: the rule's rank beats its age, and an InferenceCluster's above it beats both."""
    first = WorkloadRule(pods=Selector({"app": "live"}), priority=50)
    budgets = {"rack-a": leaf("rack-a", "a", workloads=(first,))}
    older, ranked = asks("older", DECODE), asks("ranked", {**DECODE, "app": "live"}, created_s=9.0)
    whole = room(older, ranked, watts=FLOOR_W, budgets=budgets)
    assert reasons(whole) == {"older": "InsufficientPower", "ranked": "Admitted"}
    served = site(
        older, ranked, pod(Role.PREFILL, "p"), pod(Role.DECODE, "d"), budgets=budgets, floor_room_w={"rack-a": 2 * FLOOR_W}
    )
    assert {a.need.pod.name for a in plan_admission(snapshot_of(served)).admissions} == {"p", "d"}


def test_below_two_roots_it_goes_only_where_it_has_a_phase_and_counts_by_the_dearest_floor() -> None:
    small = GpuStatus("GPU-n2", model="A small one", min_w=100, max_w=300)
    sites: dict[str, Any] = {
        "nodes": {n: NodeFact(n, {"rack": rack}, "b", gpus=8) for n, rack in (("n1", "a"), ("n2", "b"))},
        "gpus": {"n1": (GpuStatus("GPU-n1", model=H100, min_w=200, max_w=700),), "n2": (small,)},
    }
    rule = WorkloadRule(pods=Selector({"app": "x"}), phase=Phase.DECODE, priority=7)
    budgets = {"rack-a": leaf("rack-a", "a", workloads=(rule,)), "rack-b": leaf("rack-b", "b")}
    whole = replace(room(asks("x", {"app": "x"}), budgets=budgets, **sites), floor_room_w={"rack-a": 0.0, "rack-b": 1e5})
    assert reasons(whole) == {"x": "InsufficientPower"}, "rack-b has the watts, and says no phase"
    labelled = replace(whole, pods={PodName("s", "x"): asks("x", {"app": "x", **PREFILL})})
    snapshot = snapshot_of(labelled)
    [want], [need] = snapshot.clusters, snapshot.waiting
    assert (want.priority, need.role) == (0, Role.PREFILL), "the lowest rank, the hungrier phase"
    facts = [
        pod_fact_of(OwnerFact("s", "x", "u", need_labels), budgets[b].workloads)
        for b in budgets
        for need_labels in [{"app": "x", **PREFILL}]
    ]
    kind = GpuKind(H100, 200, 700, 700)
    dearest_w = max(demand_of_pod(kind, fact, profiles=builtin()).cliff_w for fact in facts if fact is not None)
    assert need.floor_w[KIND] == dearest_w


@given(
    st.lists(st.tuples(st.sampled_from([DECODE, PREFILL, {}, {"app": "a"}, {"app": "b", **DECODE}]), st.booleans()), max_size=6),
    st.floats(-2000, 12_000),
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([None, *Phase]), st.sampled_from([None, -5, 100])), max_size=3
    ),
)
def test_whatever_askers_claim_no_watt_is_promised_twice_and_nobody_unclassed_is_let_in(
    pods: list[tuple[dict[str, str], bool]], watts: float, rules: list[tuple[str, Phase | None, int | None]]
) -> None:
    made = tuple(WorkloadRule(pods=Selector({"app": app}), phase=phase, priority=rank) for app, phase, rank in rules)
    budgets: dict[str, BudgetSpec] = {"rack-a": leaf("rack-a", "a", workloads=made)}
    askers = [
        asks(f"p{i}", labels, gated=gated, leaf=None if gated else "rack-a", rules=NodeRules())
        for i, (labels, gated) in enumerate(pods)
    ]
    nodes = {f"n{i}": NodeFact(f"n{i}", {"rack": "a"}, "b", gpus=8) for i in range(8)}
    gpus = {name: (GpuStatus(f"GPU-{name}", model=H100, min_w=200, max_w=700),) for name in nodes}
    whole = room(*askers, watts=watts, budgets=budgets, nodes=nodes, gpus=gpus)
    plan = plan_admission(snapshot_of(whole))
    held = sum(not gated for _, gated in pods)
    if plan.admissions:
        assert (held + len(plan.admissions)) * FLOOR_W <= watts + 1e-6
    for admission in plan.admissions:
        labels = whole.pods[admission.need.pod].labels
        fact = pod_fact_of(OwnerFact("s", admission.need.pod.name, "u", labels or {}), made)
        assert fact is not None and fact.phase is not Phase.UNASSIGNED
        assert whole.pods[admission.need.pod].gated
    waiting = {p.name for p in askers if p.gated}
    told = {pod_of(name) for name in plan.verdicts}
    assert told == waiting, "each that waits is told, and nobody else"
