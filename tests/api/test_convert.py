"""API objects to the core's data and back: nothing is lost, nothing unknown becomes zero."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from splitwatt_api import convert
from splitwatt_api.convert_profile import profile_from_wire, profile_to_api
from splitwatt_api.power_budget import PostureName
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.tree import Elastic, LimitState, MeterSpec, Requirement, Selector, WorkloadRule
from splitwatt_core.clusters import EngineType, ModelSource, ProbeSpec, Role, RouterSpec, RouterType, SpecError
from splitwatt_core.columns import Posture
from splitwatt_core.conditions import Condition
from splitwatt_core.gpus import profiles
from splitwatt_core.policies.signature import Unassigned
from splitwatt_core.protocol.contract import Mode, Phase

NOW_S = 1_790_000_000.25


def budget(spec: dict[str, Any], status: dict[str, Any] | None = None) -> dict[str, Any]:
    meta = {"name": "rack-a1", "uid": "u1", "generation": 3, "resourceVersion": "7", "managedFields": []}
    return {"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": meta, "spec": spec} | (
        {"status": status} if status is not None else {}
    )


LEAF = {
    "parent": "row-a",
    "limitWatts": 26_000,
    "nodeSelector": {
        "matchLabels": {"splitwatt.io/rack": "a1"},
        "matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["x"]}],
    },
    "nonGpuWattsPerNode": 2_800,
    "unmanagedWattsPerNode": 10_200,
    "fixedWatts": 600,
    "overheadPercent": 4,
    "meter": {
        "selector": 'rack_power_watts{rack="a1"}',
        "expectedSeries": 2,
        "maxAgeSeconds": 7,
        "ageSelector": "raw",
        "scale": {"numerator": 10},
    },
    "elastic": {"maxNodes": 2, "gpusPerNode": 8, "nodeLabels": {"pool": "p"}},
    "limitGraceSeconds": 9,
    "settleMilliseconds": 250,
}


def report(**changes: Any) -> BudgetReport:
    fields: dict[str, Any] = {
        "name": "rack-a1",
        "limit": LimitState(20_800, 26_000, NOW_S - 60.5, ((20_800, NOW_S + 4.125),)),
        "charge_w": 25_999.2,
        "measured_w": 21_000.4,
        "posture": Posture.NORMAL,
        "nodes": 4,
        "gpus": 32,
        "short_w": 0.0,
        "adoption_s": 2.3456,
        "conditions": (Condition("Ready", True, "Holding", "limit 26000 W is kept"),),
    }
    return BudgetReport(**{**fields, **changes})


def test_a_leaf_says_everything_to_the_core() -> None:
    spec = convert.budget_from_wire(budget(LEAF))
    assert (spec.name, spec.uid, spec.generation, spec.parent, spec.limit_w) == ("rack-a1", "u1", 3, "row-a", 26_000)
    assert spec.selector == Selector({"splitwatt.io/rack": "a1"}, (Requirement("zone", "NotIn", ("x",)),))
    assert (spec.non_gpu_w_per_node, spec.unmanaged_w_per_node, spec.fixed_w) == (2_800, 10_200, 600)
    assert (spec.overhead_percent, spec.limit_grace_s, spec.settle_ms) == (4, 9.0, 250)
    assert spec.meter == MeterSpec('rack_power_watts{rack="a1"}', "Sum", 2, 7.0, "raw", (10, 1))
    assert spec.elastic == Elastic(2, 8, {"pool": "p"})
    assert spec.limit_state is None
    assert not spec.adopted


def test_a_root_without_mode_and_policy_observes_and_is_phase_aware() -> None:
    spec = convert.budget_from_wire(budget({"limitWatts": 50_000}))
    assert (spec.mode, spec.policy, spec.unassigned, spec.safe_cap_w) == (
        Mode.OBSERVE,
        "PhaseAware",
        Unassigned.MINIMUM,
        None,
    )
    assert spec.selector is None
    assert spec.meter is None


@pytest.mark.parametrize(
    ("told", "mode"),
    [
        ({"mode": "Strict"}, Mode.STRICT),
        ({"mode": "Observe"}, Mode.OBSERVE),
        ({}, Mode.STRICT),  # an earlier release held it, and wrote no mode down
    ],
)
def test_a_budget_in_force_does_not_let_go_because_its_mode_is_missing(told: dict[str, str], mode: Mode) -> None:
    status = convert.budget_status(report(mode=None), generation=3, previous=None, now_s=NOW_S) | told
    assert convert.budget_from_wire(budget({"limitWatts": 50_000}, status)).mode is mode
    assert convert.budget_from_wire(budget({"limitWatts": 50_000, "mode": "Observe"}, status)).mode is Mode.OBSERVE


def test_a_leaf_that_has_lost_its_root_holds_its_own_limit() -> None:
    assert convert.budget_from_wire(budget(LEAF)).mode is Mode.STRICT


def test_the_mode_of_the_tree_stands_in_every_status() -> None:
    status = convert.budget_status(report(mode=Mode.OBSERVE), generation=3, previous=None, now_s=NOW_S)
    assert status["mode"] == "Observe"
    assert "mode" not in convert.budget_status(report(), generation=3, previous=None, now_s=NOW_S)


def test_a_roots_mode_and_policy_are_taken_over() -> None:
    policy = {"type": "Uniform", "unassignedGpus": "Hold", "safeCapWatts": 350}
    spec = convert.budget_from_wire(budget({"limitWatts": 50_000, "mode": "Observe", "policy": policy}))
    assert (spec.mode, spec.policy, spec.unassigned, spec.safe_cap_w) == (
        Mode.OBSERVE,
        "Uniform",
        Unassigned.HOLD,
        350,
    )


def test_a_roots_rules_about_workloads_are_taken_over() -> None:
    first = {"podSelector": {"matchLabels": {"app": "chat"}}, "phase": "Decode", "priority": "High", "model": "llama"}
    second = {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}, "priority": -3}
    spec = convert.budget_from_wire(budget({"limitWatts": 50_000, "workloads": [first, second]}))
    assert spec.workloads == (
        WorkloadRule(Selector({"app": "chat"}), None, Phase.DECODE, 100, "llama"),
        WorkloadRule(None, Selector({}, (Requirement("team", "Exists"),)), None, -3),
    )
    assert convert.budget_from_wire(budget({"limitWatts": 50_000})).workloads == ()


def test_a_limits_grace_survives_a_restart_exactly() -> None:
    status = convert.budget_status(report(), generation=3, previous=None, now_s=NOW_S)
    spec = convert.budget_from_wire(budget(LEAF, status))
    assert spec.limit_state == LimitState(20_800, 26_000, NOW_S - 60.5, ((20_800, NOW_S + 4.125),))
    assert spec.adopted


@given(
    in_force_w=st.integers(1, 10**6),
    since_s=st.floats(1e9, 2e9),
    pending=st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e9, 2e9)), max_size=4),
)
def test_any_limit_state_comes_back(in_force_w: int, since_s: float, pending: list[tuple[int, float]]) -> None:
    seen_w = pending[-1][0] if pending else in_force_w
    state = LimitState(seen_w, in_force_w, since_s, tuple(pending))
    status = convert.budget_status(report(limit=state), generation=1, previous=None, now_s=NOW_S)
    back = convert.budget_from_wire(budget(LEAF, status)).limit_state
    assert back is not None
    assert (back.spec_w, back.in_force_w) == (seen_w, in_force_w)
    assert back.since_s == pytest.approx(since_s, abs=2e-6)
    assert [w for w, _ in back.pending] == [w for w, _ in pending]
    assert [s for _, s in back.pending] == pytest.approx([s for _, s in pending], abs=2e-6)


ODD_TIMES = ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999Z", "2026-01-01T00:00:00+99:99", "x"]


@pytest.mark.parametrize("since", ODD_TIMES)
@pytest.mark.parametrize("where", ["limitInForceSince", "pendingLimits"])
def test_a_limit_does_not_wait_for_a_status_whose_times_no_clock_shows(where: str, since: str) -> None:
    """The API server takes most of them as date-times."""
    status = convert.budget_status(report(), generation=3, previous=None, now_s=NOW_S)
    odd: Any = since if where == "limitInForceSince" else [{"watts": 1, "inForceAt": since}]
    spec = convert.budget_from_wire(budget(LEAF, {**status, where: odd}))
    assert spec.limit_w == 26_000 and spec.limit_state is None
    assert spec.adopted


@pytest.mark.parametrize(
    ("field", "value"),
    [("posture", "Curtail"), ("conditions", [{"type": "Ready", "status": "Maybe"}]), ("below", 7), ("chargeWatts", -1)],
)
def test_of_a_status_of_another_release_the_rest_is_read(field: str, value: Any) -> None:
    status = convert.budget_status(report(contract_uid="crd-1"), generation=3, previous=None, now_s=NOW_S)
    spec = convert.budget_from_wire(budget(LEAF, {**status, field: value}))
    assert spec.limit_state == LimitState(20_800, 26_000, NOW_S - 60.5, ((20_800, NOW_S + 4.125),))
    assert spec.contract_uid == "crd-1" and spec.adopted == (field != "posture")


@pytest.mark.parametrize("status", [7, [], "x"])
def test_a_status_that_is_none_is_no_status(status: Any) -> None:
    assert convert.budget_from_wire(budget(LEAF, status)).limit_w == 26_000


def test_what_is_wrong_with_a_spec_is_told_beside_a_broken_status() -> None:
    with pytest.raises(ValidationError, match="limitWatts") as told:
        convert.budget_from_wire(budget({**LEAF, "limitWatts": 0}, {"posture": "Curtail"}))
    assert "posture" not in str(told.value)


def test_an_adopting_budget_is_not_adopted_after_a_restart() -> None:
    status = convert.budget_status(report(posture=Posture.ADOPTING, adoption_s=None), generation=3, previous=None, now_s=NOW_S)
    assert status["posture"] == "Adopting"
    assert "adoptionMilliseconds" not in status
    assert not convert.budget_from_wire(budget(LEAF, status)).adopted


def test_a_predecessors_adoption_time_is_kept() -> None:
    first = convert.budget_status(report(), generation=3, previous=None, now_s=NOW_S)
    second = convert.budget_status(report(adoption_s=None), generation=3, previous=first, now_s=NOW_S + 1)
    assert first["adoptionMilliseconds"] == second["adoptionMilliseconds"] == 2346


def test_unknown_watts_are_absent_and_charges_are_never_rounded_down() -> None:
    status = convert.budget_status(report(measured_w=None, charge_w=25_999.001), generation=3, previous=None, now_s=NOW_S)
    assert "measuredWatts" not in status
    assert status["chargeWatts"] == 26_000
    exact = convert.budget_status(report(measured_w=0.0, charge_w=26_000.0 + 1e-9), generation=3, previous=None, now_s=NOW_S)
    assert exact["measuredWatts"] == 0
    assert exact["chargeWatts"] == 26_000


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    first = convert.budget_status(report(), generation=3, previous=None, now_s=NOW_S)
    same = convert.budget_status(
        report(conditions=(Condition("Ready", True, "RaisesHeld", "other words"),)),
        generation=4,
        previous=first,
        now_s=NOW_S + 10,
    )
    turned = convert.budget_status(
        report(conditions=(Condition("Ready", False, "InvalidTree", "no"),)),
        generation=4,
        previous=same,
        now_s=NOW_S + 20,
    )
    times = [status["conditions"][0]["lastTransitionTime"] for status in (first, same, turned)]
    assert times[0] == times[1] == convert.rfc3339(NOW_S)
    assert times[2] == convert.rfc3339(NOW_S + 20)
    assert turned["conditions"][0]["status"] == "False"


def test_every_posture_has_a_word() -> None:
    words = [convert.budget_status(report(posture=p), generation=1, previous=None, now_s=NOW_S)["posture"] for p in Posture]
    assert words == [name.value for name in PostureName]


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        convert.unix_s("2026-01-01T00:00:00")
    assert convert.unix_s("2026-01-01T00:00:00Z") == convert.unix_s("2026-01-01T01:00:00+01:00")


def cluster(**spec: Any) -> dict[str, Any]:
    meta = {"name": "chat", "namespace": "serving", "uid": "u", "generation": 2}
    base = {
        "model": {"name": "llama"},
        "engine": {"type": "VLLM"},
        "prefill": {"replicas": 2, "gpusPerReplica": 8},
        "decode": {"replicas": 0},
    }
    return {"metadata": meta, "spec": {**base, **spec}}


def test_nothing_of_a_clusters_status_stands_in_the_way_of_its_spec() -> None:
    odd = {**cluster(), "status": {"prefill": "?", "conditions": 7}}
    assert convert.cluster_from_wire(odd) == convert.cluster_from_wire(cluster())


def test_a_cluster_says_everything_to_the_core() -> None:
    core = convert.cluster_from_wire(
        cluster(
            engine={"type": "Emulated", "image": "engine:1", "port": 9000, "args": ["--x"]},
            slo={"ttftP99Milliseconds": 2000},
            decode={
                "replicas": 3,
                "gpusPerReplica": 4,
                "nodeSelector": {"pool": "d"},
                "powerCeilingWatts": 500,
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"serviceAccountName": "s"}},
            },
            kvTransfer={"connector": "C", "sideChannelPort": 5700, "extraConfig": {"k": [1]}, "onFailure": "Fail"},
            router={
                "type": "None",
                "image": "r:1",
                "replicas": 2,
                "args": ["--a"],
                "metricsPort": 1,
                "resources": {"limits": {"cpu": 1}},
            },
            priorityClassName="gold",
            imagePullSecrets=[{"name": "key"}],
        )
    )
    assert (core.namespace, core.name, core.uid, core.generation, core.model) == ("serving", "chat", "u", 2, "llama")
    assert (core.engine.type, core.engine.image, core.engine.port, core.engine.args) == (
        EngineType.EMULATED,
        "engine:1",
        9000,
        ("--x",),
    )
    assert (core.slo.ttft_p99_ms, core.slo.tbt_p99_ms) == (2000, None)
    prefill, decode = core.role(Role.PREFILL), core.role(Role.DECODE)
    assert (prefill.replicas, prefill.gpus_per_replica) == (2, 8)
    assert (decode.replicas, decode.gpus_per_replica, decode.power_ceiling_w) == (3, 4, 500)
    assert decode.node_selector == {"pool": "d"}
    assert decode.template["spec"] == {"serviceAccountName": "s"}
    assert decode.template["metadata"]["labels"] == {"a": "b"}
    assert (core.kv_transfer.connector, core.kv_transfer.side_channel_port) == ("C", 5700)
    assert core.kv_transfer.extra_config == {"k": [1]} and not core.kv_transfer.recompute
    router = RouterSpec(RouterType.NONE, "r:1", 2, ("--a",), {"requests": {}, "limits": {"cpu": 1}}, 1)
    assert (core.router, core.priority_class, core.image_pull_secrets) == (router, "gold", ("key",))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, ModelSource()),
        ({"hub": {"tokenSecret": {"name": "hf"}}}, ModelSource(token_secret=("hf", "token"))),
        ({"hub": {"cacheClaim": "c"}}, ModelSource(cache_claim="c")),
        ({"claim": {"name": "c", "path": "a"}}, ModelSource(claim="c", path="a")),
        ({"image": {"reference": "m:1"}}, ModelSource(image="m:1")),
        ({"path": "/m"}, ModelSource(path="/m")),
    ],
)
def test_a_source_of_weights_comes_over_whole(source: Any, told: ModelSource) -> None:
    model = {"name": "m"} if source is None else {"name": "m", "source": source}
    assert convert.cluster_from_wire(cluster(model=model)).source == told


def test_probes_and_drains_come_over_with_their_defaults() -> None:
    core = convert.cluster_from_wire(
        cluster(engine={"type": "VLLM", "probes": {"restartSeconds": 900}}, prefill={"replicas": 1, "drainSeconds": 45})
    )
    assert core.engine.probes == ProbeSpec(startup_s=3600, unready_s=30, restart_s=900)
    assert tuple(core.role(role).drain_s for role in core.roles) == (45, None)


@pytest.mark.parametrize(("word", "rank"), [(None, 100), ("High", 100), ("Low", 0), (7, 7), (-1000, -1000)])
def test_priorities_are_ranks_in_the_core(word: object, rank: int) -> None:
    raw = cluster() if word is None else cluster(priority=word)
    assert convert.cluster_from_wire(raw).priority == rank


@pytest.mark.parametrize("profile", profiles.builtin(), ids=lambda p: p.name)
def test_a_shipped_profile_comes_back_as_it_was(profile: profiles.Profile) -> None:
    back = profile_from_wire(profile_to_api(profile).to_wire())
    assert back.name == profile.name.lower()
    for field in (
        "product_names", "idle_w", "min_cap_w", "default_cap_w", "min_clock_mhz", "max_clock_mhz", "phases",
        "clock_exponent_permille", "voltage_floor_permille",
    ):  # fmt: skip
        assert getattr(back, field) == getattr(profile, field), field
    assert back.sources == {path: text for path, text in profile.sources.items() if not path.startswith("timing.")}
    assert all(back.matches(name) for name in (profile.name, *profile.product_names))


def test_no_number_without_a_grade() -> None:
    from dataclasses import replace

    bare = replace(profiles.builtin()[0], sources={"idle_w": "somewhere"})
    with pytest.raises(ValueError, match="grade"):
        profile_to_api(bare)


def test_a_mixed_pool_comes_over_alone_and_beside_the_two_others() -> None:
    pool = {"replicas": 4, "gpusPerReplica": 2, "powerCeilingWatts": 600, "nodeSelector": {"pool": "m"}, "drainSeconds": 90}
    whole = convert.cluster_from_wire(cluster(prefill=None, decode=None, mixed=pool))
    assert whole.roles == (Role.MIXED,) and not whole.split
    mixed = whole.role(Role.MIXED)
    assert (mixed.replicas, mixed.gpus_per_replica, mixed.power_ceiling_w, mixed.drain_s) == (4, 2, 600, 90)
    assert mixed.node_selector == {"pool": "m"}
    assert convert.cluster_from_wire(cluster(mixed=pool, router={"type": "None"})).roles == tuple(Role)
    with pytest.raises(SpecError, match="two halves"):
        convert.cluster_from_wire(cluster(decode=None, mixed=pool))
