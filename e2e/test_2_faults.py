"""Pods killed, rolled and evicted, the API server away, a kubelet restarted, a node without power, DNS gone: budgets are kept
throughout, and requests are answered."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from ground import dns, rack, serving
from ground.caps import Highest
from ground.furnish import NAMESPACE
from ground.site import OPERATOR_LEASE, Site
from ground.traffic import Traffic
from splitwatt_core.names import LABEL_CLUSTER
from splitwatt_lab.judge import Judge

PER_S = 3.0
LOOSE_W, TIGHT_W = 2800, 900
"""Above the least of every GPU, for the four that are held."""
BACK_S = 120.0
SILENCE_S = 120.0
"""Without DNS: a Lease of 15 s would run out eight times."""
NEVER_S = 45.0
AWAY_S = 45.0
"""The API server: three times the Lease, and shorter than the minute after which an operator that writes nothing is ended."""
SETTLED_S = 3.0
"""From the API server's end until what was on its way is through."""


@pytest.fixture(scope="module")
def chat(installed: Site) -> Site:
    installed.judge()  # left out where nobody could judge
    serving.make_namespace(installed)
    installed.limit(rack.NAME, rack.limit_w(installed, above_least_w=LOOSE_W))
    serving.serve(installed, serving.inference_cluster(installed, "chat", prefill=1, decode=1))
    return installed


def traffic(site: Site) -> Traffic:
    return Traffic(site.cluster, namespace=serving.NAMESPACE, name="chat", per_s=PER_S)


def test_a_limit_is_cut_under_load(chat: Site, judged: Judge) -> None:
    with traffic(chat) as asked:
        time.sleep(10)
        chat.limit(rack.NAME, rack.limit_w(chat, above_least_w=TIGHT_W))
        time.sleep(20)
        chat.limit(rack.NAME, rack.limit_w(chat, above_least_w=LOOSE_W))
        time.sleep(5)
    assert len(asked.requests) > 60 and not asked.failed(), asked.failed()[:3]


def test_an_agent_that_is_killed_comes_back_and_no_request_fails(chat: Site, judged: Judge) -> None:
    with traffic(chat) as asked:
        before = {pod["metadata"]["uid"] for pod in chat.pods("agent")}
        caps = chat.enforced_w()
        chat.cluster.kubectl(
            "delete", "pod", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=agent", "--grace-period=0", "--force"
        )
        chat.await_("new agents are ready", lambda: all_ready(chat, "agent", but_not=before), timeout_s=BACK_S)
        for node in chat.cluster.nodes():
            chat.await_ready("np", node, timeout_s=BACK_S)
    assert not asked.failed(), asked.failed()[:3]
    assert {node: len(each) for node, each in caps.items()} == {node: len(each) for node, each in chat.enforced_w().items()}


def test_an_operator_that_is_killed_reigns_again_under_one_term_more(chat: Site, judged: Judge) -> None:
    term = chat.term
    with traffic(chat) as asked:
        before = {pod["metadata"]["uid"] for pod in chat.pods("operator")}
        chat.cluster.kubectl(
            "delete", "pod", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--grace-period=0", "--force"
        )
        chat.await_("a new operator is ready", lambda: all_ready(chat, "operator", but_not=before), timeout_s=BACK_S)
        chat.await_("it reigns", lambda: chat.term > term, timeout_s=BACK_S)
        chat.await_ready("pb", rack.NAME, timeout_s=BACK_S)
    assert chat.term == term + 1
    assert not asked.failed(), asked.failed()[:3]


def test_agents_and_operator_are_rolled(chat: Site, judged: Judge) -> None:
    with traffic(chat) as asked:
        for what in ("ds/splitwatt-agent", "deploy/splitwatt-operator"):
            chat.cluster.kubectl("rollout", "restart", what, "-n", NAMESPACE)
            chat.cluster.kubectl("rollout", "status", what, "-n", NAMESPACE, f"--timeout={BACK_S:g}s")
        settle(chat)
    assert not asked.failed(), asked.failed()[:3]


@pytest.mark.parametrize("component", ["agent", "operator"])
def test_pods_that_are_evicted_come_back(chat: Site, judged: Judge, component: str) -> None:
    """As a drain does it."""
    pods = chat.pods(component)
    before = {pod["metadata"]["uid"] for pod in pods}
    with traffic(chat) as asked:
        for pod in pods:
            name = pod["metadata"]["name"]
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
            answer = chat.cluster.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            assert answer.status_code == httpx.codes.CREATED, answer.text
        chat.await_("new pods are ready", lambda: all_ready(chat, component, but_not=before), timeout_s=BACK_S)
        settle(chat)
    assert not asked.failed(), asked.failed()[:3]


def test_the_api_server_is_away(chat: Site, judged: Judge) -> None:
    """The Lease runs out and nobody else takes it: the same operator goes on, under the same term."""
    term = chat.term
    uids = {pod["metadata"]["uid"] for pod in (*chat.pods("operator"), *chat.pods("agent"))}
    with traffic(chat) as asked:
        chat.cluster.stop_api_server()
        try:
            time.sleep(SETTLED_S)
            with Highest(chat) as highest:
                time.sleep(AWAY_S)
        finally:
            chat.cluster.start_api_server()
            back_s = time.time()
        took_s = chat.await_("it reigns again", lambda: chat.renewed_since(back_s), timeout_s=BACK_S)
        print(f"the operator reigns {took_s:.1f} s after the API server is back")
        settle(chat)
    assert not highest.raised(), highest.raised()
    assert chat.term == term
    assert {pod["metadata"]["uid"] for pod in (*chat.pods("operator"), *chat.pods("agent"))} == uids
    assert not asked.failed(), asked.failed()[:3]


def test_a_kubelet_restarts(chat: Site, judged: Judge) -> None:
    uids = {pod["metadata"]["uid"] for pod in chat.get("pods", "-n", serving.NAMESPACE)["items"]}
    caps = chat.enforced_w()
    with traffic(chat) as asked:
        for node in chat.cluster.nodes():
            chat.cluster.restart_kubelet(node)
            offered = "jsonpath={.status.allocatable.nvidia\\.com/gpu}=8"
            chat.cluster.kubectl("wait", f"node/{node}", f"--for={offered}", "--timeout=60s")
            chat.await_ready("np", node, timeout_s=BACK_S)
    assert not asked.failed(), asked.failed()[:3]
    assert {pod["metadata"]["uid"] for pod in chat.get("pods", "-n", serving.NAMESPACE)["items"]} == uids
    assert caps.keys() == chat.enforced_w().keys()


def test_the_term_stays_while_dns_is_gone(chat: Site, judged: Judge) -> None:
    """Prometheus by the README's name. First nobody knows it, from the operator's start on; then it is known, and then CoreDNS
    has no pod for two minutes."""
    site = chat
    had_dns = site.cluster.kubectl("get", "deploy", dns.NAME, "-n", dns.SYSTEM, check=False).returncode == 0
    if had_dns:
        dns.scale(site, 0)
    site.install(f"--set=operator.prometheusUrl={dns.PROMETHEUS_URL}")
    site.await_(
        "the operator asks by that name",
        lambda: any(dns.PROMETHEUS_URL in each for each in operator_arguments(site)),
        timeout_s=BACK_S,
    )
    site.await_("it reigns", lambda: lease_is_held(site), timeout_s=BACK_S)
    the_term_stays(site, NEVER_S)
    dns.name_prometheus(site)
    dns.install(site)
    site.await_("meters are heard", lambda: meters_are_heard(site), timeout_s=BACK_S)
    dns.scale(site, 0)
    the_term_stays(site, SILENCE_S)
    dns.scale(site, 1)
    site.await_("meters are heard again", lambda: meters_are_heard(site), timeout_s=BACK_S)
    assert [status["restartCount"] for pod in site.pods("operator") for status in pod["status"]["containerStatuses"]] == [0]
    site.install()


def the_term_stays(site: Site, for_s: float) -> None:
    term, until_s = site.term, time.monotonic() + for_s
    while time.monotonic() < until_s:
        assert site.term == term, "the operator lost its Lease while the API server was well"
        time.sleep(2)


def meters_are_heard(site: Site) -> bool:
    return site.condition("pb", rack.NAME, condition="TelemetryFresh").get("status") == "True"


def test_a_node_loses_power_and_comes_back(chat: Site) -> None:
    """What its pods were asked meanwhile is lost; what is promised is watts."""
    site, node = chat, chat.cluster.nodes()[-1]
    judge = site.judge()
    on_it = sum(pod["spec"]["nodeName"] == node for pod in serving.living(site, f"{LABEL_CLUSTER}=chat"))
    lost_s = time.time()
    site.cluster.restart_node(node)
    site.await_(
        "the agent follows the new boot", lambda: boot_of(site, node) == site.cluster.twin(node).boot_id, timeout_s=BACK_S
    )
    site.await_ready("np", node, timeout_s=BACK_S)
    site.await_("its engines serve again", lambda: serving.serving_since(site, "chat", lost_s) >= on_it, timeout_s=BACK_S)
    site.await_ready("ic/chat", "-n", serving.NAMESPACE, timeout_s=BACK_S)
    judge.start()
    with traffic(site) as asked:
        time.sleep(10)
    judge.stop()
    assert asked.requests and not asked.failed(), asked.failed()[:3]
    assert not any(count.either_over_s for count in judge.counts.values())


def settle(site: Site) -> None:
    """Until the operator that runs reigns, and all is well: what was Ready before it came says nothing of it."""

    def reigns() -> bool:
        names = [pod["metadata"]["name"] for pod in site.pods("operator") if "deletionTimestamp" not in pod["metadata"]]
        return len(names) == 1 and str(site.lease.get("holderIdentity", "")).startswith(names[0])

    site.await_("the operator that runs holds the Lease", reigns, timeout_s=BACK_S)
    for node in site.cluster.nodes():
        site.await_ready("np", node, timeout_s=BACK_S)
    site.await_ready("pb", rack.NAME, timeout_s=BACK_S)


def all_ready(site: Site, component: str, *, but_not: set[str]) -> bool:
    pods = site.pods(component)
    fresh = [pod for pod in pods if pod["metadata"]["uid"] not in but_not]
    conditions = [{each["type"]: each["status"] for each in pod["status"].get("conditions", ())} for pod in fresh]
    return bool(fresh) and len(fresh) == len(pods) and all(each.get("Ready") == "True" for each in conditions)


def operator_arguments(site: Site) -> list[str]:
    return [word for pod in site.pods("operator") for word in pod["spec"]["containers"][0]["args"]]


def lease_is_held(site: Site) -> bool:
    pods = {pod["metadata"]["name"] for pod in site.pods("operator")}
    holder = site.get("lease", OPERATOR_LEASE, "-n", NAMESPACE)["spec"].get("holderIdentity") or ""
    return any(holder.startswith(pod) for pod in pods)


def boot_of(site: Site, node: str) -> str:
    return str(site.get("np", node).get("status", {}).get("bootID", ""))
