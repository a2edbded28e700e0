"""Pods of other people's serving: what labels and rules make of them, and that no word that is missing raises anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget import workloads as law
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.known_labels import GROUP_LABELS, MODEL_LABELS, ROLE_LABELS, RoleLabel, group_of
from splitwatt_core.budget.tree import Requirement, Selector, WorkloadRule
from splitwatt_core.budget.workloads import OwnerFact, Workloads, pod_fact_of, unit_of, unread
from splitwatt_core.clusters import PRIORITY_LOW
from splitwatt_core.protocol.contract import MAX_PRIORITY, MIN_PRIORITY, Phase, Workload

LLMD = "llm-d.ai/role"
DYNAMO = "nvidia.com/dynamo-component-type"
LWS = "leaderworkerset.sigs.k8s.io/group-key"


def pod(space: dict[str, str] | None = None) -> OwnerFact:
    return OwnerFact("ns", "pod", "u", {}, {} if space is None else space)


def labelled(**labels: str) -> OwnerFact:
    return replace(pod(), labels=labels)


def fact(phase: Phase, priority: int = PRIORITY_LOW, model: str = "", **more: str) -> PodFact:
    return PodFact("ns", "pod", phase, priority, model, **more)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("known", ROLE_LABELS, ids=lambda known: known.key)
def test_every_known_label_says_its_phase_and_no_rank(known: RoleLabel) -> None:
    beside = {known.beside: "x"} if known.beside else {}
    assert set(known.phases.values()) == {Phase.PREFILL, Phase.DECODE}
    for value, phase in known.phases.items():
        assert pod_fact_of(labelled(**{known.key: value, **beside}), ()) == replace(fact(phase), mixed=value in known.both)
    assert pod_fact_of(labelled(**{known.key: "router", **beside}), ()) is None


def test_an_engine_of_both_phases_is_prefill_as_a_mixed_pod_of_ours_is_until_a_rule_says_its_phase() -> None:
    for value in ("both", "prefill-decode", "encode-prefill-decode"):
        pod = labelled(**{LLMD: value})
        assert pod_fact_of(pod, ()) == replace(fact(Phase.PREFILL), mixed=True)
        ranked, phased = (
            WorkloadRule(Selector({LLMD: value}), priority=7),
            WorkloadRule(Selector({LLMD: value}), phase=Phase.PREFILL),
        )
        assert pod_fact_of(pod, (ranked,)) == replace(fact(Phase.PREFILL, 7), mixed=True)
        assert pod_fact_of(pod, (phased,)) == fact(Phase.PREFILL)
    assert pod_fact_of(labelled(**{LLMD: "encode-prefill"}), ()) == fact(Phase.PREFILL)


def test_a_label_that_anybody_might_use_counts_beside_its_projects_own_alone() -> None:
    assert pod_fact_of(labelled(**{"role-name": "decode"}), ()) is None
    assert pod_fact_of(labelled(**{"role-name": "decode", "storm-service-name": "chat"}), ()) == fact(Phase.DECODE)


def test_a_model_is_read_beside_a_role() -> None:
    for key in MODEL_LABELS:
        assert pod_fact_of(labelled(**{LLMD: "decode", key: "llama"}), ()) == fact(Phase.DECODE, model="llama")
        assert pod_fact_of(labelled(**{key: "llama"}), ()) is None


def test_labels_that_disagree_are_told_and_the_first_counts() -> None:
    found = pod_fact_of(labelled(**{LLMD: "decode", DYNAMO: "prefill"}), ())
    assert found is not None and found.phase is Phase.DECODE
    assert found.conflict == f"label {LLMD} says Decode, which counts, label {DYNAMO} says otherwise: take one off"
    agreed = pod_fact_of(labelled(**{LLMD: "decode", DYNAMO: "decode"}), ())
    assert agreed == fact(Phase.DECODE)


# ---------------------------------------------------------------------------------------------------------------- rules


def test_a_rule_is_the_sites_word_and_counts_before_a_label() -> None:
    rule = WorkloadRule(Selector({"app": "chat"}), None, Phase.PREFILL, 100, "llama")
    owner = labelled(app="chat", **{LLMD: "decode", MODEL_LABELS[0]: "other"})
    found = pod_fact_of(owner, (rule,))
    assert found is not None and (found.phase, found.priority, found.model) == (Phase.PREFILL, 100, "llama")
    assert found.conflict == f"label {LLMD} says Decode, spec.workloads[0] says Prefill, which counts"


def test_what_a_rule_leaves_out_the_label_says() -> None:
    rule = WorkloadRule(Selector({"app": "chat"}), priority=100)
    assert pod_fact_of(labelled(app="chat", **{LLMD: "decode"}), (rule,)) == fact(Phase.DECODE, 100)
    assert pod_fact_of(labelled(app="chat"), (rule,)) == fact(Phase.UNASSIGNED, 100), "its rank alone is known"


def test_the_first_rule_that_matches_counts() -> None:
    rules = (
        WorkloadRule(Selector({"app": "other"}), priority=1),
        WorkloadRule(Selector({"app": "chat"}), priority=2),
        WorkloadRule(Selector({"app": "chat"}), phase=Phase.DECODE, priority=3),
    )
    assert pod_fact_of(labelled(app="chat"), rules) == fact(Phase.UNASSIGNED, 2)


def test_a_rule_may_choose_namespaces() -> None:
    rule = WorkloadRule(None, Selector({"team": "a"}), Phase.DECODE, 50)
    assert pod_fact_of(pod({"team": "a"}), (rule,)) == fact(Phase.DECODE, 50)
    assert pod_fact_of(pod({"team": "b"}), (rule,)) is None


def test_where_a_namespaces_labels_could_not_be_read_nothing_is_decided_by_a_rule_that_asks_for_them() -> None:
    rule = WorkloadRule(Selector({"app": "chat"}), Selector({"team": "a"}), Phase.DECODE)
    blind = replace(labelled(app="chat"), namespace_labels=None)
    assert pod_fact_of(blind, (rule,)) == unread(("ns", "pod"))
    assert pod_fact_of(replace(blind, labels={"app": "else"}), (rule,)) is None, "the pod itself is not meant"


LABELS = st.dictionaries(
    st.sampled_from(["app", "tier", LLMD, DYNAMO, "role-name", "storm-service-name", LWS, *MODEL_LABELS]),
    st.sampled_from(["a", "b", "prefill", "decode", "both", ""]),
)
SELECTORS = st.builds(
    Selector,
    st.dictionaries(st.sampled_from(["app", "tier", LLMD]), st.sampled_from(["a", "b", "decode"]), max_size=2),
    st.lists(
        st.builds(Requirement, st.sampled_from(["app", "tier"]), st.sampled_from(["Exists", "DoesNotExist"])), max_size=1
    ).map(tuple),
)
RULES = st.lists(
    st.builds(
        WorkloadRule,
        st.none() | SELECTORS,
        st.none() | SELECTORS,
        st.none() | st.sampled_from([Phase.PREFILL, Phase.DECODE]),
        st.none() | st.integers(MIN_PRIORITY, MAX_PRIORITY),
        st.sampled_from(["", "llama"]),
    ),
    max_size=4,
).map(tuple)


@given(labels=LABELS, space=st.none() | LABELS)
def test_no_label_gives_a_rank_or_a_ceiling(labels: dict[str, str], space: dict[str, str] | None) -> None:
    found = pod_fact_of(OwnerFact("ns", "pod", "u", labels, space), ())
    assert found is None or (found.priority, found.power_ceiling_w, found.unread) == (PRIORITY_LOW, None, False)


@given(labels=LABELS, space=LABELS, rules=RULES, extra=RULES)
def test_rules_after_the_one_that_matches_say_nothing(
    labels: dict[str, str], space: dict[str, str], rules: tuple[WorkloadRule, ...], extra: tuple[WorkloadRule, ...]
) -> None:
    owner = OwnerFact("ns", "pod", "u", labels, space)
    matched = any(
        (rule.pods is None or rule.pods.matches(labels)) and (rule.namespaces is None or rule.namespaces.matches(space))
        for rule in rules
    )
    if matched:
        assert pod_fact_of(owner, (*rules, *extra)) == pod_fact_of(owner, rules)
    else:
        assert pod_fact_of(owner, rules) == pod_fact_of(owner, ())


# -------------------------------------------------------------------------------------------------------------- vanishing


@given(
    labels=LABELS,
    space=LABELS,
    rules=RULES,
    kept=st.lists(st.tuples(st.sets(st.integers(0, 8)), st.none() | st.sets(st.integers(0, 8))), min_size=1, max_size=4),
)
def test_a_label_that_vanishes_changes_nothing(
    labels: dict[str, str],
    space: dict[str, str],
    rules: tuple[WorkloadRule, ...],
    kept: list[tuple[set[int], set[int] | None]],
) -> None:
    """Of the pod, of its namespace, or because nobody may read these any more."""
    whole, workloads = OwnerFact("ns", "pod", "u", labels, space), Workloads(awaits=True)
    workloads.see(whole)
    before = workloads.of(whole.key, root="row", rules=rules)
    for mine, theirs in kept:
        left = {key: value for i, (key, value) in enumerate(labels.items()) if i in mine}
        around = None if theirs is None else {key: value for i, (key, value) in enumerate(space.items()) if i in theirs}
        workloads.see(replace(whole, labels=left, namespace_labels=around))
        assert workloads.of(whole.key, root="row", rules=rules) == before
    workloads.see(OwnerFact("ns", "pod", ""))
    assert workloads.of(whole.key, root="row", rules=rules) == before, "the pod is gone, and a GPU is still said to be its own"


def test_a_role_label_that_turns_into_nonsense_is_as_it_was_and_one_that_changes_counts() -> None:
    workloads = Workloads()
    for value, phase in (("decode", Phase.DECODE), ("", Phase.DECODE), ("x", Phase.DECODE), ("prefill", Phase.PREFILL)):
        workloads.see(labelled(**{LLMD: value}))
        assert workloads.of(("ns", "pod"), root="row", rules=()) == fact(phase)


def test_another_pod_of_the_name_begins_anew() -> None:
    for between in (False, True):
        workloads = Workloads()
        workloads.see(labelled(**{LLMD: "decode"}))
        if between:
            workloads.gone(("ns", "pod"))
        workloads.see(replace(pod(), uid="another"))
        assert workloads.of(("ns", "pod"), root="row", rules=()) is None


def test_who_was_not_named_for_a_moment_is_who_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an agent that starts anew. What is remembered is bounded."""
    monkeypatch.setattr(law, "MAX_PAST_OWNERS", 2)
    workloads = Workloads()
    for others, found in ((1, fact(Phase.DECODE)), (2, None)):
        workloads.see(labelled(**{LLMD: "decode"}))
        workloads.gone(("ns", "pod"))
        for i in range(others):
            workloads.see(OwnerFact("ns", f"other-{i}", "u"))
            workloads.gone(("ns", f"other-{i}"))
        workloads.see(pod())
        assert workloads.of(("ns", "pod"), root="row", rules=()) == found


def test_rules_that_change_count_at_once_and_each_root_has_its_own() -> None:
    workloads = Workloads()
    workloads.see(labelled(app="chat"))
    first, second = ((WorkloadRule(Selector({"app": "chat"}), None, Phase.DECODE, rank),) for rank in (1, 2))
    for root, rules, found in (
        ("row", first, fact(Phase.DECODE, 1)),
        ("row", second, fact(Phase.DECODE, 2)),
        ("other", first, fact(Phase.DECODE, 1)),
        ("row", (), None),
        ("row", second, fact(Phase.DECODE, 2)),
    ):
        assert workloads.of(("ns", "pod"), root=root, rules=rules) == found


def test_who_is_awaited_is_unread_until_told_of_and_a_stranger_where_nobody_reads() -> None:
    for awaits, found in ((True, unread(("ns", "pod"))), (False, None)):
        workloads = Workloads(awaits=awaits)
        assert workloads.of(("ns", "pod"), root="row", rules=()) == found
        workloads.see(pod())
        assert workloads.of(("ns", "pod"), root="row", rules=()) is None
        workloads.gone(("ns", "pod"))
        assert workloads.of(("ns", "pod"), root="row", rules=()) == found


# ----------------------------------------------------------------------------------------------------------------- groups


def test_pods_that_say_the_same_of_all_a_projects_group_labels_are_one_replica() -> None:
    for known in GROUP_LABELS:
        whole = {key: f"v-{i}" for i, key in enumerate(known.keys)}
        assert group_of(whole) == "/".join((known.keys[0], *whole.values()))
        for key in known.keys:
            assert group_of({**whole, key: "other"}) != group_of(whole)
            assert group_of({k: v for k, v in whole.items() if k != key}) == ""


def test_a_group_without_a_role_is_a_group_of_strangers() -> None:
    found = pod_fact_of(labelled(**{LWS: "abc"}), ())
    assert found == fact(Phase.UNASSIGNED, group=f"{LWS}/abc")


def test_one_unit_are_pods_of_one_group_namespace_and_rank() -> None:
    """Else a pod would rise with a neighbour's group by naming it."""
    mine = fact(Phase.DECODE, 5, group="g")
    units = [
        unit_of(Workload("ns", "p1"), mine),
        unit_of(Workload("ns", "p2"), mine),
        unit_of(Workload("other", "p1"), mine),
        unit_of(Workload("ns", "p1"), replace(mine, priority=6)),
        unit_of(Workload("ns", "p1"), replace(mine, group="h")),
        unit_of(Workload("ns", "p1"), replace(mine, group="")),
        unit_of(Workload("ns", "p1"), None),
    ]
    assert units[0] == units[1] and len(set(units[1:6])) == 5
    assert units[5] == units[6] == ("ns", "p1")
