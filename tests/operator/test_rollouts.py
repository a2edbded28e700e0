"""Rollouts on a real API server with real controllers and kwok's nodes: a pair of one revision and its router at every look."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from splitwatt_core.names import LABEL_REVISION, LABEL_ROLE, LABEL_ROUTER
from support.serving_site import PAIR_W, OperatorProcess, Site, idle_w
from support.waiting import eventually

ROLES = ("prefill", "decode")


class Watcher:
    """Looks at the cluster's pods all the time: `looks`, and what was wrong at any of them."""

    def __init__(self, site: Site, *, most: int) -> None:
        self.site, self.most = site, most
        self.looks = 0
        self.wrong: list[str] = []
        self.served_by: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.03):
                self._look()
        except BaseException as error:  # noqa: BLE001 - a look that fails is one that proves nothing, and is told
            self.wrong.append(repr(error))

    def _look(self) -> None:
        path = f"/api/v1/namespaces/{self.site.namespace}/pods"
        pods = self.site.plane.http.get(path).raise_for_status().json()["items"]
        self.looks += 1
        ready: dict[str, set[str]] = {}
        for pod in pods:
            labels = pod["metadata"]["labels"]
            if LABEL_REVISION in labels and is_ready(pod):
                ready.setdefault(labels[LABEL_REVISION], set()).add(labels.get(LABEL_ROLE, "router"))
        serving = [revision for revision, parts in ready.items() if parts == {*ROLES, "router"}]
        if not serving:
            self.wrong.append(f"nobody serves: {ready}")
        if serving and self.served_by[-1:] != [serving[0]] and len(serving) == 1:
            self.served_by.append(serving[0])
        for role in ROLES:
            # A pod that is told to go is no replica of anybody's any more.
            held = [
                p for p in pods if p["metadata"]["labels"].get(LABEL_ROLE) == role and not p["metadata"].get("deletionTimestamp")
            ]
            if len(held) > self.most:
                self.wrong.append(f"{len(held)} {role} pods")


def is_ready(pod: Mapping[str, Any]) -> bool:
    rows = pod.get("status", {}).get("conditions", [])
    return not pod["metadata"].get("deletionTimestamp") and any(r["type"] == "Ready" and r["status"] == "True" for r in rows)


def deployments(site: Site) -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = site.plane.http.get(f"/apis/apps/v1/namespaces/{site.namespace}/deployments").json()["items"]
    return found


def revisions(site: Site) -> set[str]:
    return {each["metadata"]["labels"][LABEL_REVISION] for each in deployments(site)}


def engine_args(site: Site, *args: str) -> None:
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps({"spec": {"engine": {"args": args}}}))


def rolled(site: Site, *args: str) -> bool:
    """Every engine runs with these arguments, and nothing of another revision is left."""
    runs = [tuple(pod["spec"]["containers"][0]["args"][-len(args) :]) == args for pod in site.pods("chat")]
    return bool(runs) and all(runs) and len(revisions(site)) == 1 and site.condition("chat", "Ready").get("status") == "True"


@pytest.fixture
def two_and_two(site: Site) -> Iterator[Site]:
    site.add_nodes(4)
    site.limit(idle_w(4) + 4 * PAIR_W)
    site.cluster("chat")
    both = {role: {"replicas": 2} for role in ROLES}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps({"spec": both}))
    site.await_condition("chat", "Ready", "True")
    eventually("two of each", lambda: all(site.running("chat", role) == 2 for role in ROLES))
    yield site


def test_a_new_revision_takes_over_and_somebody_serves_at_every_look(two_and_two: Site) -> None:
    site = two_and_two
    (before,) = revisions(site)
    with Watcher(site, most=2) as watcher:
        engine_args(site, "--max-num-seqs=64")
        told = site.await_condition("chat", "RollingOut", "True", "PairsKept")
        eventually("rolled", lambda: rolled(site, "--max-num-seqs=64"))
    (after,) = revisions(site)
    assert watcher.looks > 5 and not watcher.wrong, watcher.wrong[:5]
    assert watcher.served_by == [before, after]
    assert before in told["message"] and after in told["message"]
    eventually("nothing is said any more", lambda: not site.condition("chat", "RollingOut"))
    service = site.get("service", "chat")
    assert service is not None and service["spec"]["selector"] == {LABEL_ROUTER: "chat"}, "both routers were behind it"


def test_a_rollout_amid_a_rollout_a_rollback_and_a_crash(two_and_two: Site, operator: OperatorProcess) -> None:
    site = two_and_two
    (first,) = revisions(site)
    with Watcher(site, most=2) as watcher:
        engine_args(site, "--max-num-seqs=32")
        eventually("another revision is there", lambda: len(revisions(site)) == 2)
        engine_args(site, "--max-num-seqs=16")
        eventually(
            "a third one runs", lambda: any(p["spec"]["containers"][0]["args"][-1].endswith("=16") for p in site.pods("chat"))
        )
        operator.crash()
        time.sleep(0.5)
        operator.start()
        engine_args(site)
        eventually("all of the first again", lambda: revisions(site) == {first} and len(deployments(site)) == 3)
        site.await_condition("chat", "Ready", "True")
        eventually("two of each", lambda: all(site.running("chat", role) == 2 for role in ROLES))
    assert watcher.looks > 5 and not watcher.wrong, watcher.wrong[:5]


def test_replicas_without_watts_do_not_stop_a_rollout(site: Site) -> None:
    """An autoscaler that asks for more than the budget holds stays there, and the cluster must be rolled all the same."""
    site.add_nodes(6)
    site.limit(idle_w(6) + 2 * PAIR_W)
    site.cluster("chat")
    three = {role: {"replicas": 3} for role in ROLES}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps({"spec": three}))
    eventually("two of each", lambda: all(site.running("chat", role) == 2 for role in ROLES))
    site.await_condition("chat", "PowerAdmitted", "False", "InsufficientPower")
    eventually("a router", lambda: site.condition("chat", "RouterReady").get("status") == "True")
    with Watcher(site, most=3) as watcher:
        engine_args(site, "--max-num-seqs=64")
        told = eventually("it says what has no watts", lambda: _short(site.condition("chat", "RollingOut")))

        def moved() -> bool:
            pods = [pod for role in ROLES for pod in site.pods("chat", role) if pod["status"]["phase"] == "Running"]
            return len(pods) == 4 and all(pod["spec"]["containers"][0]["args"][-1] == "--max-num-seqs=64" for pod in pods)

        eventually("two of each are of the new one, and the former is gone", lambda: moved() and len(revisions(site)) == 1)
    assert told["reason"] == "PairsKept"
    assert watcher.looks > 5 and not watcher.wrong, watcher.wrong[:5]
    assert site.condition("chat", "PowerAdmitted")["status"] == "False", "the third ones wait on"
    site.limit(idle_w(6) + 3 * PAIR_W)
    site.await_condition("chat", "Ready", "True")


def _short(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    words = "1 prefill and 1 decode have no watts, and the others move without them."
    return row if words in row.get("message", "") else None


def test_what_is_no_revision_rolls_in_place(two_and_two: Site) -> None:
    site = two_and_two
    before, names = revisions(site), {each["metadata"]["name"] for each in deployments(site)}
    overlay = {"spec": {"router": {"replicas": 2}, "prefill": {"template": {"metadata": {"annotations": {"note": "x"}}}}}}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps(overlay))
    eventually("noted", lambda: all(p["metadata"]["annotations"].get("note") for p in site.pods("chat", "prefill")))
    site.await_condition("chat", "Ready", "True")
    assert revisions(site) == before and {each["metadata"]["name"] for each in deployments(site)} == names


def test_one_and_one_is_told_to_be_interrupted(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    engine_args(site, "--max-num-seqs=64")
    told = site.await_condition("chat", "RollingOut", "True", "ServingInterrupted")
    assert "prefill and decode have one replica each" in told["message"]
    eventually("rolled", lambda: rolled(site, "--max-num-seqs=64"))


def test_engines_of_a_former_release_are_not_restarted_and_are_rolled_like_others(
    two_and_two: Site, operator: OperatorProcess
) -> None:
    """It named no revisions: neither Deployments nor pods bear a label."""
    site = two_and_two
    operator.crash()
    for each in deployments(site):
        meta = each["metadata"]
        site.kubectl("delete", "deployment", meta["name"])
        if LABEL_ROUTER in each["spec"]["selector"]["matchLabels"]:
            continue
        for labels in (meta["labels"], each["spec"]["template"]["metadata"]["labels"]):
            del labels[LABEL_REVISION]
        kept = {key: meta[key] for key in ("name", "namespace", "labels", "annotations", "ownerReferences")}
        manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": kept, "spec": each["spec"]}
        site.plane.http.post(f"/apis/apps/v1/namespaces/{site.namespace}/deployments", json=manifest).raise_for_status()
    eventually("their pods are there", lambda: len(site.pods("chat")) == 4)
    operator.start()
    eventually("two of each", lambda: all(site.running("chat", role) == 2 for role in ROLES))
    site.await_condition("chat", "Ready", "True")
    former = {pod["metadata"]["uid"] for pod in site.pods("chat")}

    def known_by_their_hash() -> bool:
        router = site.get("deployment", "chat-router")
        return router is not None and "pod-template-hash=" in json.dumps(
            router["spec"]["template"]["spec"]["containers"][0]["args"]
        )

    eventually("the router knows them", known_by_their_hash)
    assert {pod["metadata"]["uid"] for pod in site.pods("chat")} == former
    engine_args(site, "--max-num-seqs=64")
    eventually("rolled", lambda: rolled(site, "--max-num-seqs=64"))
