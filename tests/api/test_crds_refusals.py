"""Every bad object is refused by the real API server with a sentence that says what to change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import httpx
import pytest
from splitwatt_lab.controlplane import ControlPlane

API = "/apis/splitwatt.io/v1alpha1"
PATHS = {
    "PowerBudget": f"{API}/powerbudgets",
    "NodePower": f"{API}/nodepowers",
    "PowerProfile": f"{API}/powerprofiles",
    "InferenceCluster": f"{API}/namespaces/default/inferenceclusters",
}


class Absent(Enum):
    """A member, not an `object()`: its name is the same in every process, and so are the tests' names."""

    KEY = "absent"


GONE = Absent.KEY

ROOT = {"limitWatts": 50_000, "mode": "Strict", "policy": {"type": "PhaseAware"}, "reserveWatts": 2_400}
RULE = {"podSelector": {"matchLabels": {"app": "chat"}}, "phase": "Decode", "priority": "High", "model": "llama"}
LEAF = {
    "limitWatts": 26_000,
    "parent": "row-a",
    "nodeSelector": {"matchLabels": {"splitwatt.io/rack": "a1"}},
    "nonGpuWattsPerNode": 2_800,
    "unmanagedWattsPerNode": 10_200,
    "overheadPercent": 4,
    "meter": {"selector": 'rack_power_watts{rack="a1"}'},
}
CLUSTER = {
    "model": {"name": "llama"},
    "engine": {"type": "VLLM"},
    "prefill": {"replicas": 1, "gpusPerReplica": 8},
    "decode": {"replicas": 1, "gpusPerReplica": 8},
}
POOL = {"replicas": 2, "gpusPerReplica": 8}
GRANT = {"uuid": "GPU-1", "grant": 4_000_000_001, "capWatts": 400, "safeCapWatts": 350, "chargeWatts": 700}
NODE = {"term": 4, "forUID": "u", "budgets": ["rack-a1"], "gpus": [GRANT]}
PROFILE = {
    "productNames": ["NVIDIA X"],
    "idleWatts": 70,
    "minCapWatts": 200,
    "defaultCapWatts": 700,
    "minClockMegahertz": 300,
    "maxClockMegahertz": 2000,
    "phases": [
        {
            "phase": "Decode",
            "naturalDrawWatts": 380,
            "cliffWatts": 350,
            "latencyCurve": [{"capWatts": 200, "factorPermille": 3000}, {"capWatts": 380, "factorPermille": 1000}],
        }
    ],
}
BASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "root": ("PowerBudget", ROOT),
    "leaf": ("PowerBudget", LEAF),
    "cluster": ("InferenceCluster", CLUSTER),
    "node": ("NodePower", NODE),
    "profile": ("PowerProfile", PROFILE),
}


def manifest(base: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A valid object with fields changed by path: "meter.selector", "gpus.0.capWatts"; GONE removes."""
    kind, spec = BASES[base]
    spec = copy.deepcopy(dict(spec))
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        target: Any = spec
        for part in parents:
            target = target[part] if isinstance(part, int) else target.setdefault(part, {})
        if value is GONE:
            del target[last]
        else:
            target[last] = value
    return {"apiVersion": "splitwatt.io/v1alpha1", "kind": kind, "metadata": {"name": "it"}, "spec": spec}


Ask = Callable[[dict[str, Any]], httpx.Response]


@pytest.fixture
def ask(crds: ControlPlane) -> Ask:
    """POST as kubectl does: unknown fields are errors. Nothing is stored."""
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    return lambda body: crds.http.post(PATHS[body["kind"]], json=body, params=query)


@pytest.mark.parametrize("base", BASES)
def test_the_plain_object_is_taken(ask: Ask, base: str) -> None:
    answer = ask(manifest(base, {}))
    assert answer.status_code == 201, answer.text


CASES = [
    # Budgets: watts.
    ("root", {"limitWatts": 0}, "spec.limitWatts in body should be greater than or equal to 1"),
    ("root", {"limitWatts": -5}, "spec.limitWatts in body should be greater than or equal to 1"),
    ("root", {"limitWatts": 10**12}, "spec.limitWatts in body should be less than or equal to 1000000000"),
    ("root", {"limitWatts": 50.5}, 'spec.limitWatts: Invalid value: "float64": spec.limitWatts in body must be'),
    ("root", {"limitWatts": "50kW"}, 'spec.limitWatts in body must be of type integer: "string"'),
    ("root", {"limitWatts": GONE}, "spec.limitWatts: Required value"),
    ("root", {"limitWats": 50_000}, 'unknown field "spec.limitWats"'),
    ("root", {"reserveWatts": 50_000}, "reserveWatts must be below limitWatts"),
    ("leaf", {"nonGpuWattsPerNode": -1}, "should be greater than or equal to 0"),
    ("leaf", {"overheadPercent": 101}, "should be less than or equal to 100"),
    # Budgets: where a field belongs.
    ("leaf", {"mode": "Strict"}, "mode is set once per tree, at the root: remove mode here, or remove parent"),
    ("leaf", {"policy.type": "Uniform"}, "policy is set once per tree, at the root"),
    ("leaf", {"parent": "it"}, "a budget cannot be its own parent: name the budget above it, or remove parent"),
    ("leaf", {"parent": "Row A"}, "spec.parent in body should match"),
    ("leaf", {"unmanagedWattsPerNode": GONE}, "must say unmanagedWattsPerNode"),
    ("leaf", {"nonGpuWattsPerNode": GONE}, "must say nonGpuWattsPerNode, the most one node draws besides its GPUs"),
    ("root", {"nonGpuWattsPerNode": 4}, "nonGpuWattsPerNode counts per selected node"),
    ("leaf", {"nodeSelector": {}}, "a nodeSelector must name at least one label"),
    ("leaf", {"nodeSelector": GONE}, "nonGpuWattsPerNode counts per selected node: set nodeSelector"),
    ("root", {"overheadPercent": 4}, "overheadPercent counts per selected node"),
    ("root", {"unmanagedWattsPerNode": 4}, "unmanagedWattsPerNode counts per selected node"),
    (
        "leaf",
        {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        "In and NotIn need at least one value",
    ),
    ("root", {"elastic": {"maxNodes": 2, "gpusPerNode": 8}}, "elastic is for a leaf: set nodeSelector"),
    ("leaf", {"elastic": {"maxNodes": 3, "gpusPerNode": 8}}, "must not be above limitWatts: lower elastic.maxNodes"),
    ("leaf", {"elastic": {"maxNodes": 0, "gpusPerNode": 8}}, "should be greater than or equal to 1"),
    ("leaf", {"elastic": {"maxNodes": 2}}, "spec.elastic.gpusPerNode: Required value"),
    (
        "leaf",
        {"unmanagedWattsPerNode": 0, "elastic": {"maxNodes": 2, "gpusPerNode": 8}},
        "an elastic budget keeps unmanagedWattsPerNode free for every node to come",
    ),
    # Budgets: workloads.
    ("leaf", {"workloads": [RULE]}, "workloads are classed once per tree, at the root: remove workloads here"),
    ("root", {"workloads": [{"phase": "Decode"}]}, "a rule of workloads must select something: set podSelector"),
    ("root", {"workloads": [{**RULE, "podSelector": {}}]}, "a selector of workloads must name at least one label"),
    ("root", {"workloads": [{"podSelector": RULE["podSelector"]}]}, "a rule of workloads must say something: set phase"),
    ("root", {"workloads": [{**RULE, "phase": "decode"}]}, "phase must be Prefill or Decode, not 'decode'"),
    ("root", {"workloads": [{**RULE, "priority": 5000}]}, "priority must be High, Low, or a whole number from -1000 to 1000"),
    ("root", {"workloads": [{**RULE, "model": ""}]}, "spec.workloads[0].model in body should be at least 1 chars long"),
    ("root", {"workloads": [{**RULE, "prio": 1}]}, 'unknown field "spec.workloads[0].prio"'),
    ("root", {"workloads": [RULE] * 25}, "must have at most 24 items"),
    # Budgets: words.
    (
        "root",
        {"mode": "Oversubscribed"},
        "mode must be Observe, Strict or Release (Oversubscribed comes later), not 'Oversubscribed'",
    ),
    ("root", {"mode": "strict"}, "mode must be Observe, Strict or Release"),
    ("root", {"policy.type": "Fair"}, "policy.type must be Uniform, PhaseAware or Polca, not 'Fair'"),
    ("root", {"policy.unassignedGpus": "Off"}, 'supported values: "Minimum", "Hold"'),
    ("root", {"policy.safeCapWatts": 0}, "spec.policy.safeCapWatts in body should be greater than or equal to 1"),
    # Budgets: the meter.
    ("leaf", {"meter.selector": "sum(rack_power_watts)"}, "meter.selector must be a plain vector selector like"),
    (
        "leaf",
        {"meter.selector": "rack_power_watts[5m]"},
        "remove functions, aggregations, operators, ranges and offsets",
    ),
    ("leaf", {"meter.selector": "rack_power_watts offset 5m"}, "meter.selector must be a plain vector selector"),
    ("leaf", {"meter.selector": "rack_power_watts{rack="}, "meter.selector must be a plain vector selector"),
    ("leaf", {"meter.ageSelector": "sum(p)"}, "meter.ageSelector must be a plain vector selector"),
    ("leaf", {"meter.scale": {"numerator": 0}}, "spec.meter.scale.numerator in body should be greater than or equal to 1"),
    ("leaf", {"meter.scale": {"denominator": 0.1}}, "spec.meter.scale.denominator in body must be of type int"),
    ("leaf", {"meter.expectedSeries": 0}, "spec.meter.expectedSeries in body should be greater than or equal to 1"),
    ("leaf", {"meter.aggregate": "Max"}, 'supported values: "Sum"'),
    # Clusters.
    ("cluster", {"mixed": {"replicas": 1, "gpus": 1}}, 'unknown field "spec.mixed.gpus"'),
    (
        "cluster",
        {"mixed": POOL},
        "router.type VLLM, SGLang or LLMD asks prefill and decode, or mixed alone: take mixed out, or prefill and decode, or",
    ),
    (
        "cluster",
        {"mixed": {**POOL, "gpusPerReplica": 3}, "router.type": "None"},
        "decode.gpusPerReplica and mixed.gpusPerReplica, each times its nodesPerReplica, must",
    ),
    ("cluster", {"prefill": GONE, "mixed": POOL}, "prefill and decode are two halves: give both, or neither of them and mixed"),
    ("cluster", {"prefill": GONE, "decode": GONE}, "give pools: prefill and decode, or mixed"),
    ("cluster", {"prefill": GONE, "decode": GONE, "mixed": {}}, "spec.mixed.replicas: Required value"),
    ("cluster", {"engine.type": "TGI"}, "engine.type must be VLLM, SGLang or Emulated, not 'TGI'"),
    ("cluster", {"engine.type": "SGLang"}, "engine.type SGLang needs router.type SGLang or None"),
    (
        "cluster",
        {"engine.type": "Emulated", "decode.memoryExpansion": {"gpu": "H100-SXM", "contextTokens": 2048}},
        "decode.memoryExpansion is rendered for engine.type VLLM alone: leave it out",
    ),
    (
        "cluster",
        {"decode.memoryExpansion": {"gpu": "H100-SXM", "contextTokens": 2048, "lossyKvCache": "Yes"}},
        "decode.memoryExpansion.lossyKvCache must be Never or Allowed, not 'Yes'",
    ),
    ("cluster", {"decode.memoryExpansion": {"gpu": "H100-SXM"}}, "spec.decode.memoryExpansion.contextTokens: Required value"),
    ("cluster", {"router.type": "SGLang"}, "no other engine stands behind router.type SGLang"),
    ("cluster", {"priority": "Urgent"}, "priority must be High, Low, or a whole number from -1000 to 1000"),
    ("cluster", {"priority": 5000}, "priority must be High, Low, or a whole number from -1000 to 1000"),
    ("cluster", {"decode.replicas": -1}, "spec.decode.replicas in body should be greater than or equal to 0"),
    (
        "cluster",
        {"decode.gpusPerReplica": 0},
        "spec.decode.gpusPerReplica in body should be greater than or equal to 1",
    ),
    ("cluster", {"decode.gpusPerReplica": 65}, "spec.decode.gpusPerReplica in body should be less than or equal to 64"),
    ("cluster", {"decode.powerCeilingWatts": -1}, "should be greater than or equal to 1"),
    ("cluster", {"decode": GONE}, "prefill and decode are two halves: give both, or neither of them and mixed"),
    ("cluster", {"model": GONE}, "spec.model: Required value"),
    ("cluster", {"slo.ttftP99Milliseconds": 0}, "should be greater than or equal to 1"),
    ("cluster", {"decode.template.spce": {}}, 'unknown field "spec.decode.template.spce"'),
    ("cluster", {"engine.args": ["x"] * 65}, "must have at most 64 items"),
    ("cluster", {"decode.gpusPerReplica": 3}, "must divide one another: make one a multiple of the other"),
    ("cluster", {"router.type": "Nginx"}, "router.type must be VLLM, SGLang, LLMD or None, not 'Nginx'"),
    (
        "cluster",
        {"mixed": POOL, "router.type": "LLMD"},
        "router.type VLLM, SGLang or LLMD asks prefill and decode, or mixed alone: take mixed out, or prefill and decode",
    ),
    ("cluster", {"router.replicas": 0}, "spec.router.replicas in body should be greater than or equal to 1"),
    ("cluster", {"router.metricsPort": 0}, "spec.router.metricsPort in body should be greater than or equal to 1"),
    ("cluster", {"router.resources.cpu": 1}, 'unknown field "spec.router.resources.cpu"'),
    ("cluster", {"kvTransfer.onFailure": "Ignore"}, "kvTransfer.onFailure must be Recompute or Fail, not 'Ignore'"),
    (
        "cluster",
        {"model.source": {"path": "/m", "claim": {"name": "weights"}}},
        "model.source is one of hub, claim, image and path: take the others out",
    ),
    ("cluster", {"model.source.hub.tokenSecret": {}}, "spec.model.source.hub.tokenSecret.name: Required value"),
    ("cluster", {"engine.probes.restartSeconds": 5}, "spec.engine.probes.restartSeconds in body should be greater than"),
    ("cluster", {"prefill.drainSeconds": 29}, "spec.prefill.drainSeconds in body should be greater than or equal to 30"),
    # The contract.
    ("node", {"gpus.0.capWatts": 800}, "chargeWatts must be at least capWatts"),
    ("node", {"gpus.0.safeCapWatts": 800}, "safeCapWatts must be at most chargeWatts"),
    ("node", {"gpus.0.grant": 2**53 + 10**9}, "should be less than or equal to"),
    ("node", {"gpus": [GRANT, GRANT]}, "every GPU is listed once: remove the second entry of its uuid"),
    ("node", {"gpus": [{**GRANT, "uuid": f"GPU-{i}"} for i in range(65)]}, "must have at most 64 items"),
    ("node", {"term": -1}, "spec.term in body should be greater than or equal to 0"),
    # Profiles.
    ("profile", {"minCapWatts": 800}, "minCapWatts must be at most defaultCapWatts"),
    ("profile", {"minClockMegahertz": 3000}, "minClockMegahertz must be at most maxClockMegahertz"),
    ("profile", {"idleWatts": 390}, "idleWatts must be below the naturalDrawWatts of every phase"),
    ("profile", {"phases.0.cliffWatts": 390}, "cliffWatts must be at most naturalDrawWatts"),
    ("profile", {"phases.0.latencyCurve.0.capWatts": 390}, "latencyCurve must list its points by rising capWatts"),
    ("profile", {"phases.0.latencyCurve.1.factorPermille": 4000}, "factorPermille must not rise with the cap"),
    ("profile", {"phases.0.latencyCurve.1.capWatts": 400}, "at or below naturalDrawWatts"),
    (
        "profile",
        {"phases.0.loadCurve": [{"amount": 2, "loadPermille": 900}, {"amount": 1, "loadPermille": 950}]},
        "loadCurve must list its points by rising amount",
    ),
]


@pytest.mark.parametrize(("base", "changes", "sentence"), CASES, ids=lambda value: str(value)[:60])
def test_a_bad_object_gets_its_sentence(ask: Ask, base: str, changes: Mapping[str, Any], sentence: str) -> None:
    answer = ask(manifest(base, changes))
    assert answer.status_code in (400, 422), answer.text
    assert sentence in answer.json()["message"]


@pytest.mark.parametrize("selector", ["rack_power_watts", "pdu:power{a='x',b=~\"1|2\",}", r'p{n="quote \" and }"}'])
def test_a_plain_selector_is_taken(ask: Ask, selector: str) -> None:
    answer = ask(manifest("leaf", {"meter.selector": selector}))
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("priority", ["High", "Low", 7, -1000])
def test_a_priority_is_a_word_or_a_class(ask: Ask, priority: object) -> None:
    answer = ask(manifest("cluster", {"priority": priority}))
    assert answer.json()["spec"]["priority"] == priority


@pytest.mark.parametrize(
    "changes",
    [
        {"prefill": GONE, "decode": GONE, "mixed": {"replicas": 0}},
        {"prefill": GONE, "decode": GONE, "mixed": POOL, "router.type": "None"},
        {"mixed": {**POOL, "gpusPerReplica": 4}, "router.type": "None"},
    ],
)
def test_a_cluster_is_unsplit_or_has_a_third_pool_that_its_own_router_knows(ask: Ask, changes: Mapping[str, Any]) -> None:
    answer = ask(manifest("cluster", changes))
    assert answer.status_code == 201, answer.text


def test_every_part_of_a_router_and_a_source_is_taken(ask: Ask) -> None:
    router = {"type": "None", "image": "r:1", "args": ["--policy=random"], "resources": {"requests": {"cpu": 1, "memory": "1Gi"}}}
    source = {"hub": {"tokenSecret": {"name": "hf"}, "cacheClaim": "weights"}}
    answer = ask(manifest("cluster", {"router": router, "model.source": source, "imagePullSecrets": [{"name": "key"}]}))
    assert answer.status_code == 201, answer.text
    spec = answer.json()["spec"]
    assert spec["router"] == {**router, "replicas": 1, "metricsPort": 29000}
    assert spec["model"]["source"]["hub"]["tokenSecret"] == {"name": "hf", "key": "token"}


def test_what_nobody_says_is_filled_in(ask: Ask) -> None:
    spec = ask(manifest("cluster", {})).json()["spec"]
    assert spec["router"] == {"type": "VLLM", "replicas": 1, "metricsPort": 29000}
    assert spec["engine"]["probes"] == {"startupSeconds": 3600, "unreadySeconds": 30, "restartSeconds": 600}
    assert spec["kvTransfer"]["onFailure"] == "Recompute"


def test_rules_about_workloads_are_taken_by_a_root_and_an_empty_list_by_anybody(ask: Ask) -> None:
    rules = [RULE, {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}, "priority": -3}]
    answer = ask(manifest("root", {"workloads": rules}))
    assert answer.status_code == 201 and answer.json()["spec"]["workloads"] == rules, answer.text
    assert ask(manifest("leaf", {"workloads": []})).status_code == 201


def test_a_pod_template_is_free_inside_its_frame(ask: Ask) -> None:
    spec = {
        "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "engine", "env": [{"name": "A", "value": "b"}]}],
    }
    answer = ask(manifest("cluster", {"decode.template.spec": spec}))
    assert answer.json()["spec"]["decode"]["template"]["spec"] == spec
