"""Where kube-scheduler would put a pod is where admission lets it go: labels, affinity, taints, cordons."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.scheduling import NodeRules, NodeTerm, Toleration
from splitwatt_core.admission.snapshot import AdmissionSnapshot, BudgetRoom, ClusterWant, NodeRoom, PodNeed
from splitwatt_core.budget.facts import Taint
from splitwatt_core.budget.tree import Requirement, Selector
from splitwatt_core.clusters import ClusterName, Role

CHAT = ClusterName("s", "chat")
TEAM_A = Taint("team", "NoSchedule", "a")
KIND, FLOOR_W = "h100", {"h100": 350.0}


ANY_NODE = NodeRules()


def house(*nodes: NodeRoom, rules: NodeRules = ANY_NODE) -> AdmissionSnapshot:
    """Watts for everybody, and one decode pod that waits."""
    racks = sorted({node.leaf for node in nodes})
    return AdmissionSnapshot(
        budgets=tuple(BudgetRoom(rack, 1e6, selector=Selector({"rack": rack})) for rack in racks),
        nodes=nodes,
        clusters=(ClusterWant(CHAT, 0, {Role.DECODE: 1}),),
        waiting=(PodNeed(PodName("s", "d"), "uid-d", CHAT, Role.DECODE, 8, FLOOR_W, rules),),
    )


def node(name: str, rack: str = "a", *taints: Taint, closed: str = "", **labels: str) -> NodeRoom:
    gpus = 0 if closed else 8
    return NodeRoom(name, rack, {"rack": rack, **labels}, gpus, gpus, KIND, 200.0, taints=taints, closed=closed)


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (Toleration("team", "Equal", "a", "NoSchedule"), True),
        (Toleration("team", "", "a"), True),
        (Toleration("team", "Exists"), True),
        (Toleration(operator="Exists"), True),
        (Toleration(operator="Exists", effect="NoExecute"), False),
        (Toleration("team", "Equal", "b"), False),
        (Toleration("team"), False),
        (Toleration("other", "Exists"), False),
        (Toleration(value="a"), False),
        (Toleration("team", "Gt", "a"), False),
    ],
)
def test_tolerations_are_kube_schedulers(toleration: Toleration, tolerated: bool) -> None:
    assert toleration.tolerates(TEAM_A) is tolerated
    rules = NodeRules(tolerations=(Toleration("unrelated", "Exists"), toleration))
    assert (rules.untolerated([TEAM_A]) is None) is tolerated


def test_every_repelling_taint_has_to_be_tolerated_and_a_preference_repels_nobody() -> None:
    rules = NodeRules(tolerations=(Toleration("team", "Exists"),))
    drain = Taint("drain", "NoExecute")
    assert rules.untolerated([TEAM_A, drain]) == drain
    assert rules.untolerated([TEAM_A, Taint("slow", "PreferNoSchedule")]) is None


@pytest.mark.parametrize(
    ("requirement", "matches"),
    [
        (Requirement("cores", "Gt", ("64",)), True),
        (Requirement("cores", "Gt", ("128",)), False),
        (Requirement("cores", "Lt", ("129",)), True),
        (Requirement("cores", "Lt", ("many",)), False),
        (Requirement("underscored", "Gt", ("500",)), False),
        (Requirement("cores", "Lt", ("1_000",)), False),
        (Requirement("zone", "Gt", ("1",)), False),
        (Requirement("absent", "Lt", ("1",)), False),
        (Requirement("zone", "NotIn", ("b",)), True),
        (Requirement("absent", "DoesNotExist"), True),
    ],
)
def test_affinity_expressions_are_kube_schedulers(requirement: Requirement, matches: bool) -> None:
    assert NodeTerm((requirement,)).matches("n1", {"cores": "128", "zone": "a", "underscored": "1_000"}) is matches


def test_one_term_is_enough_all_of_it_has_to_hold_and_an_empty_one_matches_nothing() -> None:
    zone = Requirement("zone", "In", ("a",))
    named = NodeTerm((zone,), (Requirement("metadata.name", "In", ("n1",)),))
    rules = NodeRules(Selector({"pool": "p"}), (NodeTerm(), named))
    labels = {"zone": "a", "pool": "p"}
    assert rules.matches("n1", labels)
    assert not rules.matches("n2", labels) and not rules.matches("n1", {"zone": "a"}) and not rules.matches("n1", {"pool": "p"})
    assert not NodeRules(terms=(NodeTerm(),)).matches("n1", labels)


def test_a_leaf_whose_nodes_the_pod_does_not_tolerate_has_no_room_for_it() -> None:
    tainted = house(node("n1", "a", TEAM_A), node("n2", "b"))
    assert [a.leaf for a in plan_admission(tainted).admissions] == ["b"]
    plan = plan_admission(house(node("n1", "a", TEAM_A), node("n2", "a", TEAM_A)))
    assert plan.admissions == () and plan.verdicts[CHAT].reason == "UntoleratedTaint"
    for word in ("team=a:NoSchedule", "n1, n2", "spec.decode.template"):
        assert word in plan.verdicts[CHAT].message
    tolerant = house(node("n1", "a", TEAM_A), rules=NodeRules(tolerations=(Toleration("team", "Exists"),)))
    assert [a.leaf for a in plan_admission(tolerant).admissions] == ["a"]


def test_what_takes_no_pods_is_named_and_why() -> None:
    plan = plan_admission(house(node("n1", closed="cordoned"), node("n2", closed="not Ready")))
    assert plan.admissions == () and plan.verdicts[CHAT].reason == "NodesUnavailable"
    assert "n1 (cordoned), n2 (not Ready)" in plan.verdicts[CHAT].message
    one = house(node("n1", closed="cordoned"), node("n2", "b"))
    assert [a.leaf for a in plan_admission(one).admissions] == ["b"]


def test_the_affinity_of_the_pool_is_kept_and_told() -> None:
    big = NodeRules(terms=(NodeTerm((Requirement("memory", "Gt", ("500",)),)),))
    two = (node("n1", "a", memory="256"), node("n2", "b", memory="1024"))
    assert [a.leaf for a in plan_admission(house(*two, rules=big)).admissions] == ["b"]
    verdict = plan_admission(house(two[0], rules=big)).verdicts[CHAT]
    assert (verdict.reason, "required node affinity" in verdict.message) == ("NoMatchingNodes", True)


def test_the_dearest_node_is_one_that_the_scheduler_could_pick() -> None:
    """A tainted node with dearer GPUs does not make the reservation dearer."""
    dear = replace(node("n2", "a", TEAM_A), gpu_kind="dear")
    whole = house(node("n1"), dear)
    need = replace(whole.waiting[0], floor_w={**FLOOR_W, "dear": 700.0})
    [admission] = plan_admission(replace(whole, waiting=(need,))).admissions
    assert admission.reservation_w == 8 * (350 - 200)
