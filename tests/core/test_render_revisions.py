"""What makes a new revision and what does not, and how two of them stand beside each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, KvTransferSpec, ModelSource, Role, RoleSpec, SpecError
from splitwatt_core.names import LABEL_REVISION
from splitwatt_core.rendering.render import RenderContext, pod_templates, render
from splitwatt_core.rendering.revision import Home, RenderPlan, RouterHome, revision_of

POOL = RoleSpec(2, 8)


def cluster(**changes: Any) -> ClusterSpec:
    spec = ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="m", engine=EngineSpec(EngineType.VLLM), prefill=POOL,
        decode=POOL,
    )  # fmt: skip
    return replace(spec, **changes)


def revision(spec: ClusterSpec, context: RenderContext | None = None) -> str:
    return revision_of(pod_templates(spec, context or RenderContext()))


def overlaid(**container: Any) -> RoleSpec:
    return replace(POOL, template={"spec": {"containers": [{"name": "engine", **container}]}})


@pytest.mark.parametrize(
    "other",
    [
        cluster(model="n"),
        cluster(engine=EngineSpec(EngineType.VLLM, image="vllm:next")),
        cluster(engine=EngineSpec(EngineType.VLLM, args=("--kv-cache-dtype=fp8",))),
        cluster(engine=EngineSpec(EngineType.VLLM, port=9000)),
        cluster(kv_transfer=KvTransferSpec("MooncakeConnector")),
        cluster(kv_transfer=KvTransferSpec(extra_config={"backends": ["UCX"]})),
        cluster(source=ModelSource(claim="weights")),
        cluster(source=ModelSource(claim="others")),
        cluster(source=ModelSource(image="weights:1")),
        cluster(decode=overlaid(image="mine:1")),
        cluster(prefill=overlaid(env=[{"name": "VLLM_ATTENTION_BACKEND", "value": "FLASHINFER"}])),
    ],
)
def test_what_engines_are_started_with_makes_a_revision(other: ClusterSpec) -> None:
    assert revision(other) != revision(cluster())


def test_so_does_the_releases_own_image() -> None:
    assert revision(cluster(), RenderContext(vllm_image="vllm:next")) != revision(cluster())


@pytest.mark.parametrize(
    "same",
    [
        cluster(prefill=replace(POOL, replicas=7), decode=replace(POOL, power_ceiling_w=500)),
        cluster(priority=3, generation=9, uid="other"),
        cluster(decode=replace(POOL, drain_s=10)),
        cluster(decode=replace(POOL, node_selector={"pool": "b"})),
        cluster(decode=overlaid(resources={"requests": {"memory": "1Gi"}})),
        cluster(priority_class="gold"),
    ],
)
def test_replicas_watts_and_nodes_do_not(same: ClusterSpec) -> None:
    assert revision(same) == revision(cluster())


def test_a_live_template_is_of_the_revision_that_it_was_rendered_for() -> None:
    """The API server adds defaults to what was applied."""
    live = {
        role: {**t, "spec": {**t["spec"], "dnsPolicy": "ClusterFirst"}}
        for role, t in pod_templates(cluster(), RenderContext()).items()
    }
    for template in live.values():
        container = template["spec"]["containers"][0]
        container["terminationMessagePath"] = "/dev/termination-log"
        container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    assert revision_of(live) == revision(cluster())


def test_pods_and_deployments_say_their_revision_and_no_overlay_says_another() -> None:
    mine = revision(cluster())
    for manifest in render(cluster(), RenderContext()):
        if manifest["kind"] == "Deployment":
            assert manifest["metadata"]["labels"][LABEL_REVISION] == mine
            assert manifest["spec"]["template"]["metadata"]["labels"][LABEL_REVISION] == mine
            assert LABEL_REVISION not in manifest["spec"]["selector"]["matchLabels"], "a name that another revision has later"
    wrong = replace(POOL, template={"metadata": {"labels": {LABEL_REVISION: "mine"}}})
    with pytest.raises(SpecError, match=r"must not set splitwatt\.io/revision"):
        render(cluster(prefill=wrong), RenderContext())


def test_a_second_revision_gets_deployments_and_a_router_of_its_own() -> None:
    spec = cluster()
    mine = revision(spec)
    homes = {Role.PREFILL: Home(f"chat-prefill-{mine}"), Role.DECODE: Home("chat-decode", labelled=False, pod_hash="5d8f")}
    routers = (RouterHome(mine, f"chat-router-{mine}", homes),)
    made = {
        m["metadata"]["name"]: m
        for m in render(spec, RenderContext(), RenderPlan(homes, {Role.PREFILL: 1, Role.DECODE: 2}, routers))
        if m["kind"] == "Deployment"
    }
    assert made.keys() == {f"chat-prefill-{mine}", "chat-decode", f"chat-router-{mine}"}
    prefill, decode, router = (made[name]["spec"] for name in (f"chat-prefill-{mine}", "chat-decode", f"chat-router-{mine}"))
    assert (prefill["replicas"], decode["replicas"]) == (1, 2)
    assert prefill["selector"]["matchLabels"][LABEL_REVISION] == router["selector"]["matchLabels"][LABEL_REVISION] == mine
    assert LABEL_REVISION not in decode["template"]["metadata"]["labels"], "a pod that runs is not restarted for a label"
    args = router["template"]["spec"]["containers"][0]["args"]
    at = args.index("--prefill-selector")
    assert args[at + 3] == f"{LABEL_REVISION}={mine}"
    assert args[args.index("--decode-selector") + 3] == "pod-template-hash=5d8f"


def test_a_role_without_a_free_name_waits() -> None:
    homes = {Role.PREFILL: Home("chat-prefill")}
    made = render(cluster(), RenderContext(), RenderPlan(homes, {Role.PREFILL: 2, Role.DECODE: 2}))
    assert [m["metadata"]["name"] for m in made if m["kind"] == "Deployment"] == ["chat-prefill"]
