"""Objects of InferenceClusters on a real API server with real controllers and kwok's nodes: rendered, kept so, cleaned up.

Each test has a rack, a budget and a namespace of its own; one operator serves them all.
"""

from __future__ import annotations

import json
from functools import partial

from support.serving_site import PAIR_W, Site, idle_w
from support.waiting import eventually


def test_scale_and_patch_change_replicas(site: Site) -> None:
    site.add_nodes(4)
    site.limit(idle_w(4) + 4 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    site.kubectl("scale", "ic", "chat", "--replicas=2")
    eventually("two decode pods run", lambda: site.running("chat", "decode") == 2)
    assert site.running("chat", "prefill") == 1
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"prefill":{"replicas":2}}}')
    eventually("two prefill pods run", lambda: site.running("chat", "prefill") == 2)
    site.kubectl("scale", "ic", "chat", "--replicas=1")
    eventually("one decode pod is left", lambda: len(site.pods("chat", "decode")) == 1)
    site.await_condition("chat", "Ready", "True")


def test_somebody_elses_edit_is_put_right(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + 2 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    site.kubectl("scale", "deployment", "chat-decode", "--replicas=5")
    eventually("replicas are back", lambda: (site.get("deployment", "chat-decode") or {})["spec"]["replicas"] == 1)
    site.kubectl("delete", "service", "chat-prefill")
    eventually("the service is back", lambda: site.get("service", "chat-prefill"))
    paths = ("/spec/template/spec/schedulingGates", "/metadata/ownerReferences")
    removal = json.dumps([{"op": "remove", "path": path} for path in paths])
    site.kubectl("patch", "deployment", "chat-prefill", "--type=json", "-p", removal)

    def gated_again() -> bool:
        deployment = site.get("deployment", "chat-prefill")
        assert deployment is not None
        gates = deployment["spec"]["template"]["spec"].get("schedulingGates")
        return gates == [{"name": "splitwatt.io/power"}] and bool(deployment["metadata"].get("ownerReferences"))

    eventually("the gate and the owner are back", gated_again)
    site.kubectl("label", "service", "chat", "team=search")
    site.kubectl("annotate", "ic", "chat", "touched=yes")
    events = site.events("DriftRepaired")
    assert any("chat-decode" in e["note"] for e in events)
    service = site.get("service", "chat")
    assert service is not None
    assert service["metadata"]["labels"]["team"] == "search", "what we do not render belongs to others"


def test_a_spec_that_cannot_be_rendered_leaves_the_former_one_in_force(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    wrong = {"spec": {"engine": {"args": ["--port=1"]}, "decode": {"replicas": 0}}}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps(wrong))
    row = site.await_condition("chat", "Ready", "False", "InvalidSpec")
    assert row["message"].startswith("the former spec stays in force: ") and "--port" in row["message"]
    site.kubectl("delete", "service", "chat-prefill")
    eventually("the service is back", lambda: site.get("service", "chat-prefill"))
    site.kubectl("scale", "deployment", "chat-decode", "--replicas=5")
    eventually("replicas are back", lambda: (site.get("deployment", "chat-decode") or {})["spec"]["replicas"] == 1)
    assert site.running("chat", "decode") == 1
    unknown = {"spec": {"engine": {"type": "VLLM", "args": ["--max-model-length=8192"]}}}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps(unknown))
    near = "did you mean --max-model-len?"
    eventually("its sentence", lambda: near in site.await_condition("chat", "Ready", "False", "InvalidSpec")["message"])
    right = {"spec": {"engine": {"type": "Emulated", "args": []}, "decode": {"replicas": 1}}}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps(right))
    site.await_condition("chat", "Ready", "True")


def test_deleting_a_cluster_cleans_up(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    site.kubectl("delete", "ic", "chat")
    for kind in ("deployments", "services", "poddisruptionbudgets", "pods", "roles", "rolebindings"):
        eventually(f"no {kind} are left", partial(lambda k: not site.list(k), kind))
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")


def test_a_router_comes_with_its_rights_and_goes_with_them(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    assert site.condition("chat", "RouterReady")["status"] == "True"
    assert site.condition("chat", "KVTransferVerified")["reason"] == "Emulated"
    pods = json.loads(site.kubectl("get", "pods", "-l", "splitwatt.io/router=chat", "-o", "json"))["items"]
    assert [pod["spec"]["serviceAccountName"] for pod in pods] == ["chat-router"]
    site.kubectl("delete", "role", "chat-router")
    eventually("the role is back", lambda: site.get("role", "chat-router"))
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"router":{"type":"None"}}}')
    for kind in ("deployment", "serviceaccount", "role", "rolebinding", "poddisruptionbudget"):
        eventually(f"no {kind} is left", partial(lambda k: site.get(k, "chat-router") is None, kind))
    way_in = site.get("service", "chat")
    assert way_in is not None and way_in["spec"]["selector"] == {"splitwatt.io/cluster": "chat", "splitwatt.io/role": "decode"}
    assert site.await_condition("chat", "RouterReady", "Unknown", "NoRouter")
    site.await_condition("chat", "Ready", "True")


def test_a_split_cluster_becomes_unsplit_in_one_apply(site: Site) -> None:
    """Its mixed pod waits behind the gate until the two others gave their GPUs and watts back."""
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    spec = (site.get("ic", "chat") or {})["spec"]
    unsplit = {"prefill": None, "decode": None, "mixed": {**spec["prefill"], "replicas": 2}}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps({"spec": unsplit}))
    eventually("two mixed pods run", lambda: site.running("chat", "mixed") == 2)
    for kind in ("deployment", "service", "poddisruptionbudget"):
        for role in ("prefill", "decode"):
            eventually("the former pools are gone", partial(lambda k, n: site.get(k, n) is None, kind, f"chat-{role}"))
    site.await_condition("chat", "MixedReady", "True", "AllReplicasReady")
    site.await_condition("chat", "Ready", "True")
    assert site.condition("chat", "KVTransferVerified")["reason"] == "Unsplit"
    cluster = site.get("ic", "chat")
    assert cluster is not None and cluster["status"]["mixed"]["admittedReplicas"] == 2
    assert not {"prefill", "decode"} & cluster["status"].keys()
    assert not {"PrefillReady", "DecodeReady"} & {row["type"] for row in cluster["status"]["conditions"]}
    (router,) = (each for each in site.list("deployment") if "chat-router" in each["metadata"]["name"])
    args = router["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--selector") + 1 :][:2] == ["splitwatt.io/cluster=chat", "splitwatt.io/role=mixed"]


def test_a_foreign_object_of_the_same_name_is_left_alone(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    theirs = {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}
    meta = {"name": "chat", "namespace": site.namespace}
    site.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": theirs})
    site.cluster("chat")
    row = site.await_condition("chat", "Ready", "False", "ObjectsNotApplied")
    assert row["message"] == "Service chat exists already and is not ours: rename it or this InferenceCluster"
    service = site.get("service", "chat")
    assert service is not None
    assert service["spec"]["selector"] == {"app": "theirs"}
