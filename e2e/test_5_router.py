"""The router as its image, before two pools on real pods: prefill alone reads prompts, and a decode pod may go meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

import pytest
from ground import rack, serving
from ground.site import Site
from ground.traffic import Traffic
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core.names import (
    LABEL_CLUSTER,
    LABEL_ROLE,
    LABEL_ROUTER,
    M_VLLM_GENERATION_TOKENS,
    M_VLLM_PROMPT_TOKENS,
)
from splitwatt_lab.judge import Judge

NAME = "routed"
PROMPT, TOKENS = 512, 16
PER_S = 3.0
LOOSE_W = 2800
BACK_S = 120.0
ASK = (
    "import sys, urllib.request as r; "
    "asked = r.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'}); "
    "print(r.urlopen(asked, timeout=60).read().decode())"
)
"""A client in a pod, for a Service's address is the cluster's own."""


@pytest.fixture
def routed(installed: Site) -> Iterator[Site]:
    """One prefill and two decode replicas behind a router, and no other cluster."""
    installed.judge()
    serving.make_namespace(installed)
    installed.cluster.kubectl("delete", "ic", "--all", "-n", serving.NAMESPACE)
    installed.limit(rack.NAME, rack.limit_w(installed, above_least_w=LOOSE_W))
    serving.serve(installed, serving.inference_cluster(installed, NAME, prefill=1, decode=2, gpus=1, routed=True))
    yield installed
    installed.cluster.kubectl("delete", "ic", NAME, "-n", serving.NAMESPACE)


def pods(site: Site, role: str) -> Sequence[str]:
    return [each["metadata"]["name"] for each in serving.living(site, f"{LABEL_CLUSTER}={NAME},{LABEL_ROLE}={role}")]


def routers(site: Site) -> Sequence[tuple[str, int]]:
    """Pod and restarts of each."""
    found = serving.living(site, f"{LABEL_ROUTER}={NAME}")
    return [(each["metadata"]["uid"], each["status"]["containerStatuses"][0]["restartCount"]) for each in found]


def tokens(site: Site, role: str) -> tuple[int, int]:
    """Of the prompts that a role's engines have read, and of what they have written."""
    read = wrote = 0
    for pod in pods(site, role):
        page = site.cluster.http.get(f"/api/v1/namespaces/{serving.NAMESPACE}/pods/{pod}:8000/proxy/metrics").raise_for_status()
        counted = {each.name: int(each.value) for family in text_string_to_metric_families(page.text) for each in family.samples}
        read += counted[M_VLLM_PROMPT_TOKENS]
        wrote += counted[M_VLLM_GENERATION_TOKENS]
    return read, wrote


def ask_the_service(site: Site) -> int:
    """The tokens of a completion that a pod asked the cluster's Service for."""
    spec = site.get("service", NAME, "-n", serving.NAMESPACE)["spec"]
    url = f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}/v1/completions"
    body = json.dumps({"model": serving.MODEL, "prompt": list(range(PROMPT)), "max_tokens": TOKENS})
    (client,) = pods(site, "prefill")
    said = site.cluster.kubectl("exec", "-n", serving.NAMESPACE, client, "--", "python3", "-c", ASK, url, body).stdout
    return int(json.loads(said)["usage"]["completion_tokens"])


def test_a_routed_prompt_is_read_by_prefill_alone_and_a_decode_pod_may_go(routed: Site, judged: Judge) -> None:
    site = routed
    cluster = (f"ic/{NAME}", "-n", serving.NAMESPACE)
    assert site.condition(*cluster, condition="RouterReady")["status"] == "True"
    assert ask_the_service(site) == TOKENS
    assert (tokens(site, "prefill"), tokens(site, "decode")) == ((PROMPT, 1), (0, TOKENS))

    before = routers(site)
    with Traffic(site.cluster, namespace=serving.NAMESPACE, name=NAME, per_s=PER_S, tokens=TOKENS, routed=True) as asked:
        time.sleep(5)
        goes, went_s = pods(site, "decode")[0], time.time()
        site.cluster.kubectl("delete", "pod", goes, "-n", serving.NAMESPACE, "--wait=false")
        took_s = site.await_("another in its place", lambda: serving.serving_since(site, NAME, went_s) == 1, timeout_s=BACK_S)
        print(f"another decode pod serves {took_s:.1f} s after one was told to go")
        site.await_ready(*cluster, timeout_s=BACK_S)
        time.sleep(10)
    assert len(asked.requests) > 40 and not asked.failed(), asked.failed()[:3]
    assert goes not in pods(site, "decode") and len(pods(site, "decode")) == 2
    assert tokens(site, "decode")[0] == 0, "no decode engine has read a prompt"
    assert routers(site) == before and [restarts for _, restarts in before] == [0]
    assert site.condition(*cluster, condition="RouterReady")["status"] == "True"
