"""What the operator makes of the Deployments that it finds: their revisions, their names, and those that name none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from splitwatt_core.clusters import PAIR, ClusterSpec, EngineSpec, EngineType, Role, RoleSpec, RouterSpec, RouterType
from splitwatt_core.names import LABEL_REVISION
from splitwatt_core.rendering.objects import selector_labels
from splitwatt_core.rendering.render import RenderContext, pod_templates, render
from splitwatt_core.rendering.revision import revision_of
from splitwatt_core.rendering.router import router_labels
from splitwatt_operator.cluster.store import Key, Kind
from splitwatt_operator.serving.apply import ForFormer
from splitwatt_operator.serving.revisions import Revisions, replicas_of, revisions_of, together
from support.objects import Objects

POOL = RoleSpec(2, 8)
FIRST = ClusterSpec(
    namespace="s", name="chat", uid="u", generation=1, model="m", engine=EngineSpec(EngineType.VLLM), prefill=POOL, decode=POOL
)  # fmt: skip
NEXT = replace(FIRST, engine=EngineSpec(EngineType.VLLM, args=("--seed=3",)))
DECODE_ALONE = replace(
    FIRST, decode=replace(POOL, template={"spec": {"containers": [{"name": "engine", "image": "mine:1"}]}})
)  # fmt: skip


def look(objects: Objects, spec: ClusterSpec) -> Revisions:
    return revisions_of(objects.store, spec, pod_templates(spec, RenderContext()))


def name_of(spec: ClusterSpec) -> str:
    return revision_of(pod_templates(spec, RenderContext()))


def stand(objects: Objects, spec: ClusterSpec, plan: Any = None, *, nameless: bool = False, ready: bool = True) -> None:
    """The Deployments that are rendered for it, as the API server would show them."""
    for manifest in render(spec, RenderContext(), plan):
        if manifest["kind"] not in ("Deployment", "LeaderWorkerSet"):
            continue
        meta, content = dict(manifest["metadata"]), manifest["spec"]
        if nameless:
            meta["labels"] = {key: value for key, value in meta["labels"].items() if key != LABEL_REVISION}
            del content["template"]["metadata"]["labels"][LABEL_REVISION]
            if "router" in meta["name"]:
                continue
        count = content["replicas"] if ready else 0
        status = {"replicas": content["replicas"], "readyReplicas": count, "updatedReplicas": count, "observedGeneration": 10_000}
        del meta["namespace"]
        objects.put(Kind(manifest["kind"]), meta.pop("name"), meta=meta, spec=content, status=status)


def test_what_stands_and_is_asked_for_is_left_as_it_is() -> None:
    objects = Objects()
    stand(objects, FIRST)
    found = look(objects, FIRST)
    assert render(FIRST, RenderContext(), found.rendered) == render(FIRST, RenderContext())
    assert not found.tell and not found.keep and found.plan.sentence == ""


def test_a_new_revision_is_told_beside_the_former_under_names_that_are_free() -> None:
    objects = Objects()
    stand(objects, FIRST)
    found, of = look(objects, NEXT), name_of(NEXT)
    assert {home.name for home in found.rendered.homes.values()} == {f"chat-prefill-{of}", f"chat-decode-{of}"}
    assert found.rendered.replicas == {Role.PREFILL: 0, Role.DECODE: 0} and not found.rendered.routers
    assert found.tell == {Key("s", f"chat-{role}"): ForFormer(1, name_of(FIRST)) for role in PAIR}
    assert found.keep == {(Kind.DEPLOYMENT, Key("s", name)) for name in ("chat-prefill", "chat-decode", "chat-router")}
    status = together(found.of(Role.DECODE), found.newest)
    assert status is not None and status["status"] == {"replicas": 2, "readyReplicas": 2}, "none of them is up to date"


def test_a_router_that_is_told_to_go_still_holds_its_engines() -> None:
    objects = Objects()
    stand(objects, FIRST)
    both = look(objects, NEXT).rendered
    stand(objects, NEXT, replace(both, replicas=dict.fromkeys(PAIR, 1)))
    for role in PAIR:
        objects.put(
            Kind.DEPLOYMENT, f"chat-{role}", meta=_meta(objects, f"chat-{role}"),
            spec=_spec(objects, f"chat-{role}") | {"replicas": 1}, status={"replicas": 1, "readyReplicas": 1},
        )  # fmt: skip
    router = look(objects, NEXT).rendered.routers
    assert [home.revision for home in router] == [name_of(NEXT)]
    stand(objects, NEXT, replace(both, replicas=dict.fromkeys(PAIR, 1), routers=router))
    leaving = _meta(objects, "chat-router") | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    objects.put(Kind.DEPLOYMENT, "chat-router", meta=leaving, spec=_spec(objects, "chat-router"), status={"readyReplicas": 1})
    found = look(objects, NEXT)
    assert found.plan.kept == name_of(NEXT) and not found.tell
    objects.remove(Kind.DEPLOYMENT, "chat-router")
    assert look(objects, NEXT).tell == {Key("s", f"chat-{role}"): ForFormer(0, name_of(FIRST)) for role in PAIR}


def test_engines_that_name_no_revision_are_known_by_what_they_are_started_with() -> None:
    objects = Objects()
    stand(objects, FIRST, nameless=True)
    found = look(objects, FIRST)
    assert [home.labelled for home in found.rendered.homes.values()] == [False, False]
    assert not found.tell and found.plan.sentence == ""
    owner = {"ownerReferences": [{"controller": True, "name": "chat-decode-5d8f"}], "labels": {"pod-template-hash": "5d8f"}}
    objects.put(Kind.POD, "chat-decode-5d8f-x", meta=owner, spec={"containers": []})
    assert look(objects, FIRST).rendered.homes[Role.DECODE].pod_hash == "5d8f"


def test_the_former_ones_are_named_at_the_first_look_while_both_say_what_they_were() -> None:
    """Of prefill alone nobody could say later that it is not the newest: only decode is another."""
    objects = Objects()
    stand(objects, FIRST, nameless=True, ready=False)
    found = look(objects, DECODE_ALONE)
    assert {told.revision for told in found.tell.values()} == {name_of(FIRST)} and len(found.tell) == 2


def test_a_label_that_somebody_took_is_read_from_the_pods() -> None:
    objects = Objects()
    stand(objects, FIRST)
    meta = _meta(objects, "chat-decode")
    objects.put(Kind.DEPLOYMENT, "chat-decode", meta={**meta, "labels": {}, "ownerReferences": meta["ownerReferences"]},
                spec=_spec(objects, "chat-decode"), status={"readyReplicas": 2})  # fmt: skip
    assert look(objects, FIRST).rendered.homes[Role.DECODE].labelled


def _meta(objects: Objects, name: str) -> dict[str, Any]:
    found = objects.store.get(Kind.DEPLOYMENT, name, "s")
    assert found is not None
    return {key: found["metadata"][key] for key in ("labels", "annotations", "ownerReferences")}


def _spec(objects: Objects, name: str) -> dict[str, Any]:
    found = objects.store.get(Kind.DEPLOYMENT, name, "s")
    assert found is not None
    return dict(found["spec"])


def test_a_scale_counts_the_pods_of_all_revisions_of_its_own_role() -> None:
    objects = Objects()
    stand(objects, FIRST)
    assert replicas_of(objects.store, FIRST, Role.PREFILL) == POOL.replicas
    stand(objects, NEXT, replace(look(objects, NEXT).rendered, replicas=dict.fromkeys(PAIR, 1)))
    assert replicas_of(objects.store, NEXT, Role.PREFILL) == POOL.replicas + 1
    assert replicas_of(objects.store, replace(FIRST, uid="another"), Role.PREFILL) == 0


WIDE = replace(FIRST, decode=replace(POOL, nodes_per_replica=2))
WIDER = replace(FIRST, decode=replace(POOL, nodes_per_replica=4))


def test_groups_roll_as_pods_do_beside_the_deployments_of_their_revision() -> None:
    objects = Objects()
    stand(objects, WIDE)
    assert not look(objects, WIDE).tell and not look(objects, WIDE).keep and look(objects, WIDE).plan.sentence == ""
    found, former, of = look(objects, WIDER), name_of(WIDE), name_of(WIDER)
    assert {home.name for home in found.rendered.homes.values()} == {f"chat-prefill-{of}", f"chat-decode-{of}"}
    assert found.tell == {
        Key("s", "chat-prefill"): ForFormer(1, former),
        Key("s", f"chat-decode-{former}"): ForFormer(1, former, Kind.GROUP),
    }
    assert (Kind.GROUP, Key("s", f"chat-decode-{former}")) in found.keep, "it serves until the others do"
    assert f"0 of {POOL.replicas} decode" in found.plan.sentence and f"{former} serves" in found.plan.sentence


def test_a_pool_goes_from_pods_to_groups_and_back_by_a_rollout() -> None:
    for before, after in ((FIRST, WIDE), (WIDE, FIRST)):
        objects = Objects()
        stand(objects, before)
        found = look(objects, after)
        assert {told.revision for told in found.tell.values()} == {name_of(before)} and len(found.tell) == 2
        stand(objects, after, found.rendered)
        status = together(look(objects, after).of(Role.DECODE), name_of(after))
        assert status is not None and status["status"]["readyReplicas"] == POOL.replicas, "those of both are counted"
        assert status["status"]["updatedReplicas"] == 0


def test_a_scale_counts_groups() -> None:
    objects = Objects()
    wide = replace(FIRST, prefill=replace(POOL, nodes_per_replica=4))
    stand(objects, wide)
    assert replicas_of(objects.store, wide, Role.PREFILL) == POOL.replicas


def test_the_service_of_a_cluster_that_gets_a_router_turns_when_one_is_ready() -> None:
    objects = Objects()
    bare = replace(FIRST, router=RouterSpec(RouterType.NONE))
    stand(objects, bare)
    assert way_in(objects, FIRST) == router_labels("chat"), "there is no Service yet, so there is nobody to lose"
    owner = {"namespace": "s", "ownerReferences": [{"controller": True, "uid": "u"}]}
    objects.put(Kind.SERVICE, "chat", meta=owner, spec={"selector": selector_labels("chat", Role.DECODE)})
    assert way_in(objects, bare) == selector_labels("chat", Role.DECODE)
    assert way_in(objects, FIRST) == selector_labels("chat", Role.DECODE), "no router yet"
    stand(objects, FIRST, ready=False)
    assert way_in(objects, FIRST) == selector_labels("chat", Role.DECODE), "none that is ready"
    stand(objects, FIRST)
    assert way_in(objects, FIRST) == router_labels("chat")
    objects.put(Kind.SERVICE, "chat", meta=owner, spec={"selector": router_labels("chat")})
    stand(objects, FIRST, ready=False)
    assert way_in(objects, FIRST) == router_labels("chat"), "it leads back no more"
    objects.put(Kind.SERVICE, "chat", meta=owner, spec={"selector": {"app": "theirs"}})
    assert way_in(objects, FIRST) == router_labels("chat"), "an edit is put right"


def way_in(objects: Objects, spec: ClusterSpec) -> dict[str, str]:
    made = render(spec, RenderContext(), look(objects, spec).rendered)
    [selector] = [m["spec"]["selector"] for m in made if (m["kind"], m["metadata"]["name"]) == ("Service", "chat")]
    return dict(selector)
