"""Revisions, routers and replicas come and go under traffic, on real pods: no request fails, and none is read by two revisions.
Then engines are lost, and what clients see of it is told."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from ground import rack, serving
from ground.site import Site
from ground.traffic import Asked, Traffic
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core.names import LABEL_CLUSTER, LABEL_REVISION, LABEL_ROLE, LABEL_ROUTER, M_VLLM_PROMPT_TOKENS
from splitwatt_lab.judge import Judge

NAME = "rolled"
CLUSTER = (f"ic/{NAME}", "-n", serving.NAMESPACE)
PER_S, TOKENS = 3.0, 16
LONG_TOKENS, LONG_PER_S = 400, 2.0
"""Some seconds of writing, for an engine that is lost amid it."""
LOOSE_W = 2800
ROLLED_S, BACK_S = 300.0, 120.0
AFTER_S = 15.0


@pytest.fixture(scope="module")
def two_and_two(installed: Site) -> Iterator[Site]:
    """Two prefill and two decode replicas behind a router, and no other cluster."""
    installed.judge()
    serving.make_namespace(installed)
    installed.cluster.kubectl("delete", "ic", "--all", "-n", serving.NAMESPACE)
    installed.limit(rack.NAME, rack.limit_w(installed, above_least_w=LOOSE_W))
    serving.serve(installed, serving.inference_cluster(installed, NAME, prefill=2, decode=2, gpus=1, routed=True))
    yield installed
    installed.cluster.kubectl("delete", "ic", NAME, "-n", serving.NAMESPACE)


def traffic(site: Site, *, per_s: float = PER_S, tokens: int = TOKENS) -> Traffic:
    return Traffic(site.cluster, namespace=serving.NAMESPACE, name=NAME, per_s=per_s, tokens=tokens, routed=True)


def change(site: Site, **spec: Any) -> None:
    site.cluster.kubectl("patch", *CLUSTER, "--type=merge", "-p", json.dumps({"spec": spec}))


def pods(site: Site, role: str = "") -> Sequence[dict[str, Any]]:
    of = f"{LABEL_CLUSTER}={NAME},{LABEL_ROLE}" + (f"={role}" if role else "")
    return [dict(each) for each in serving.living(site, of)]


def revisions(site: Site) -> set[str]:
    """Of engines and routers that are not told to go."""
    found = (*pods(site), *serving.living(site, f"{LABEL_ROUTER}={NAME}"))
    return {each["metadata"]["labels"][LABEL_REVISION] for each in found}


def rolled(site: Site, *, but_not: set[str]) -> bool:
    """All is of one revision that was not there before, and nothing more is said of a rollout."""
    now = revisions(site)
    said = {row["type"] for row in site.get(*CLUSTER).get("status", {}).get("conditions", [])}
    return len(now) == 1 and not now & but_not and "RollingOut" not in said and ready(site)


def ready(site: Site) -> bool:
    return site.condition(*CLUSTER, condition="Ready").get("status") == "True"


def decode_has_read(site: Site) -> int:
    """Tokens of prompts that decode engines have read, for want of a KV cache that they understand."""
    read = 0
    for pod in pods(site, "decode"):
        path = f"/api/v1/namespaces/{serving.NAMESPACE}/pods/{pod['metadata']['name']}:8000/proxy/metrics"
        page = site.cluster.http.get(path)
        if page.is_success:
            families = text_string_to_metric_families(page.text)
            read += sum(int(each.value) for family in families for each in family.samples if each.name == M_VLLM_PROMPT_TOKENS)
    return read


def test_engines_are_rolled_under_traffic_and_no_request_fails(two_and_two: Site, judged: Judge) -> None:
    site, before = two_and_two, revisions(two_and_two)
    seen: set[int] = set()
    reads: list[int] = []

    def looked() -> bool:
        seen.add(len(revisions(site)))
        reads.append(decode_has_read(site))
        return rolled(site, but_not=before)

    with traffic(site) as asked:
        time.sleep(5)
        change(site, engine={"args": ["--block-size=32"]})
        took_s = site.await_("another revision alone", looked, timeout_s=ROLLED_S)
        time.sleep(AFTER_S)
    print(f"two and two rolled in {took_s:.0f} s, {len(asked.requests)} requests, {len(asked.failed())} failed")
    assert len(asked.requests) > 60 and not asked.failed(), asked.failed()[:3]
    assert 2 in seen, "both were there"
    assert set(reads) == {0}, "no decode engine has read a prompt"


def test_a_rollout_amid_a_rollout_and_a_rollback_fail_no_request(two_and_two: Site, judged: Judge) -> None:
    site, first = two_and_two, revisions(two_and_two)
    with traffic(site) as asked:
        change(site, engine={"args": ["--block-size=64"]})
        site.await_("a second revision", lambda: len(revisions(site)) == 2, timeout_s=ROLLED_S)
        second = revisions(site)
        change(site, engine={"args": ["--block-size=128"]})
        site.await_("a third one", lambda: bool(revisions(site) - second), timeout_s=ROLLED_S)
        change(site, engine={"args": ["--block-size=32"]})
        took_s = site.await_("the first one alone", lambda: revisions(site) == first and ready(site), timeout_s=ROLLED_S)
        time.sleep(AFTER_S)
    print(f"back in {took_s:.0f} s, {len(asked.requests)} requests, {len(asked.failed())} failed")
    assert not asked.failed(), asked.failed()[:3]
    assert decode_has_read(site) == 0


def test_routers_are_rolled_and_replicas_scaled_and_no_request_fails(two_and_two: Site, judged: Judge) -> None:
    site = two_and_two

    def routers() -> set[str]:
        return {each["metadata"]["uid"] for each in serving.living(site, f"{LABEL_ROUTER}={NAME}")}

    before = routers()
    with traffic(site) as asked:
        change(site, router={"args": ["--policy=random"], "replicas": 2})
        site.await_("two other routers", lambda: len(routers()) == 2 and not routers() & before, timeout_s=BACK_S)
        change(site, router={"args": [], "replicas": 1})
        site.await_("one router", lambda: len(routers()) == 1, timeout_s=BACK_S)
        for prefill, decode in ((3, 3), (2, 4), (2, 2)):
            change(site, prefill={"replicas": prefill}, decode={"replicas": decode})
            site.await_(
                f"{prefill} and {decode}",
                lambda p=prefill, d=decode: (len(pods(site, "prefill")), len(pods(site, "decode"))) == (p, d) and ready(site),  # type: ignore[misc]
                timeout_s=BACK_S,
            )
        time.sleep(AFTER_S)
    print(f"{len(asked.requests)} requests, {len(asked.failed())} failed")
    assert not asked.failed(), asked.failed()[:3]


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_an_engine_that_is_lost_fails_what_it_held_and_nothing_later(two_and_two: Site, judged: Judge, role: str) -> None:
    """Gone within two seconds, without its drain: nobody else has its KV caches."""
    site, lost = two_and_two, pods(two_and_two, role)[0]["metadata"]["name"]
    with traffic(site, per_s=LONG_PER_S, tokens=LONG_TOKENS) as asked:
        time.sleep(10)
        at_s = time.time()
        site.cluster.kubectl("delete", "pod", lost, "-n", serving.NAMESPACE, "--grace-period=0", "--force")
        site.await_("another in its place", lambda: len(pods(site, role)) == 2 and ready(site), timeout_s=BACK_S)
        time.sleep(AFTER_S)
    failed = asked.failed()
    print(f"{role} lost: {told(asked.requests, at_s)}; clients saw {Counter((each.status, each.said[:80]) for each in failed)}")
    assert all(each.at_s < at_s + AFTER_S for each in failed), "the router asks it no more"
    held = [each for each in asked.requests if each.at_s < at_s + AFTER_S and each.at_s + each.took_s > at_s]
    assert len(failed) <= len(held), failed[:3]


def told(requests: Sequence[Asked], at_s: float) -> str:
    flying = [each for each in requests if each.at_s <= at_s < each.at_s + each.took_s]
    failed = [each for each in requests if each.status != 200 or each.tokens != LONG_TOKENS]
    return f"{len(requests)} requests, {len(flying)} of them under way, {len(failed)} failed"
