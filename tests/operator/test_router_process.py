"""The real vllm-router, with the arguments and the rights that are rendered, before emulated engines on a real API server."""

from __future__ import annotations

import json
import logging
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core.clusters import PAIR, ClusterSpec, EngineSpec, EngineType, Role, RoleSpec, RouterSpec
from splitwatt_core.names import M_VLLM_GENERATION_TOKENS, M_VLLM_PROMPT_TOKENS, M_VLLM_TTFT
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import ProcessGroup
from support.routed import RoutedCluster
from support.waiting import eventually

log = logging.getLogger(__name__)

PROMPT = list(range(700))


POOL = RoleSpec(replicas=1, gpus_per_replica=1)


@pytest.fixture
def routed(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[RoutedCluster]:
    yield from a_cluster(control_plane, namespace, tmp_path, prefill=POOL, decode=POOL)


@pytest.fixture
def unsplit(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[RoutedCluster]:
    yield from a_cluster(control_plane, namespace, tmp_path, mixed=POOL)


def a_cluster(plane: ControlPlane, namespace: str, directory: Path, **pools: Any) -> Iterator[RoutedCluster]:
    spec = ClusterSpec(
        namespace=namespace, name="chat", uid="u", generation=1, model="meta-llama/Llama-3.1-8B-Instruct",
        engine=EngineSpec(EngineType.EMULATED, port=free_port()), router=RouterSpec(metrics_port=free_port()), **pools,
    )  # fmt: skip
    with ProcessGroup(directory) as group:
        cluster = RoutedCluster(plane, group, spec)
        cluster.apply_rights()
        yield cluster
        cluster.close()


def test_a_prompt_is_read_by_prefill_and_written_by_decode(routed: RoutedCluster) -> None:
    router = routed.router()
    assert not routed.answers(f"{routed.url}/readiness"), "nobody is there yet"
    prefill, decode = routed.engine(Role.PREFILL, "127.0.0.2"), routed.engine(Role.DECODE, "127.0.0.3")
    routed.await_routed()
    answer = routed.ask(prompt=PROMPT, max_tokens=20)
    assert answer.status_code == 200, f"{answer.text} {router.log.read_text()[-3000:]}"
    assert answer.json()["usage"] == {"prompt_tokens": 700, "completion_tokens": 20, "total_tokens": 720}
    read, wrote = routed.counts(prefill), routed.counts(decode)
    assert (read[M_VLLM_PROMPT_TOKENS], read[M_VLLM_GENERATION_TOKENS]) == (700, 1)
    assert (wrote[M_VLLM_PROMPT_TOKENS], wrote[M_VLLM_GENERATION_TOKENS]) == (0, 20)
    assert read[f"{M_VLLM_TTFT}_count"] == wrote[f"{M_VLLM_TTFT}_count"] == 1, "each has its part of what the user waited"

    chat = routed.ask("/v1/chat/completions", messages=[{"role": "user", "content": "x" * 400}], max_tokens=8, stream=True)
    assert chat.status_code == 200
    frames = [json.loads(line[6:]) for line in chat.text.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for frame in frames for choice in frame["choices"])
    assert text.split() == ["watt"] * 8
    shown = routed.http.get(f"http://127.0.0.1:{routed.spec.router.metrics_port}/metrics").text
    assert "vllm_router_pd_request_duration_seconds_bucket" in shown
    assert not re.search("ttft|first_token", shown), "a router that shows TTFT would be the better witness (docs/slo.md)"


def test_engines_come_and_go_without_a_failed_request(routed: RoutedCluster) -> None:
    routed.router()
    first = [routed.engine(Role.PREFILL, "127.0.0.4"), routed.engine(Role.DECODE, "127.0.0.5")]
    routed.await_routed()
    assert routed.ask(prompt=PROMPT, max_tokens=4).status_code == 200
    second = [routed.engine(Role.PREFILL, "127.0.0.6"), routed.engine(Role.DECODE, "127.0.0.7")]

    def each_was_asked() -> bool:
        assert routed.ask(prompt=PROMPT, max_tokens=4).status_code == 200
        return all(routed.counts(name)[M_VLLM_GENERATION_TOKENS] > 0 for name in second)

    eventually("the new ones are asked too", each_was_asked)
    for name in first:
        routed.leave(name)

    def the_leaving_rest() -> bool:
        before = [routed.counts(name) for name in first]
        answers = [routed.ask(prompt=PROMPT, max_tokens=4).status_code for _ in range(6)]
        assert answers == [200] * 6
        return before == [routed.counts(name) for name in first]

    eventually("who leaves is asked no more", the_leaving_rest)


def test_an_unsplit_cluster_is_sent_each_request_whole_and_in_turn(unsplit: RoutedCluster) -> None:
    unsplit.router()
    assert not unsplit.answers(f"{unsplit.url}/readiness"), "nobody is there yet"
    mixed = [unsplit.engine(Role.MIXED, "127.0.0.8"), unsplit.engine(Role.MIXED, "127.0.0.9")]
    unsplit.await_routed()

    def both_were_asked() -> bool:
        answer = unsplit.ask(prompt=PROMPT, max_tokens=20)
        assert answer.status_code == 200, answer.text
        return all(unsplit.counts(name)[M_VLLM_PROMPT_TOKENS] > 0 for name in mixed)

    eventually("both are asked", both_were_asked)
    before = [unsplit.counts(name) for name in mixed]
    for _ in range(4):
        assert unsplit.ask(prompt=PROMPT, max_tokens=20).status_code == 200
    for counts, name in zip(before, mixed, strict=True):
        now = unsplit.counts(name)
        assert now[M_VLLM_PROMPT_TOKENS] - counts[M_VLLM_PROMPT_TOKENS] == 2 * 700, "it reads whole prompts itself"
        assert now[M_VLLM_GENERATION_TOKENS] - counts[M_VLLM_GENERATION_TOKENS] == 2 * 20, "and writes their answers"
    unsplit.leave(mixed[0])

    def the_leaving_rests() -> bool:
        at = unsplit.counts(mixed[0])
        assert [unsplit.ask(prompt=PROMPT, max_tokens=4).status_code for _ in range(4)] == [200] * 4
        return at == unsplit.counts(mixed[0])

    eventually("who leaves is asked no more", the_leaving_rests)


def test_a_router_hands_nothing_on_to_engines_of_another_revision(routed: RoutedCluster) -> None:
    """Two revisions side by side: what one understands, the other would read again."""
    engine = replace(routed.spec.engine, args=("--block-size=32",))
    spec = replace(routed.spec, engine=engine, router=RouterSpec(metrics_port=free_port()))
    later = RoutedCluster(routed.plane, routed.group, spec, revision="later-")
    routed.router()
    later.router()
    first = routed.engine(Role.PREFILL, "127.0.0.21"), routed.engine(Role.DECODE, "127.0.0.22")
    routed.await_routed()
    second = [later.engine(Role.PREFILL, "127.0.0.23")]
    time.sleep(2)
    assert not later.answers(f"{later.url}/readiness"), "the decode engine that is there is of the other revision"
    second.append(later.engine(Role.DECODE, "127.0.0.24"))
    later.await_routed()
    for each in (routed, later):
        assert [each.ask(prompt=PROMPT, max_tokens=4).status_code for _ in range(8)] == [200] * 8
    for cluster, (prefill, decode) in ((routed, first), (later, second)):
        assert cluster.counts(prefill)[M_VLLM_PROMPT_TOKENS] == 8 * 700
        assert cluster.counts(decode)[M_VLLM_PROMPT_TOKENS] == 0, "no prompt was read twice"
        assert cluster.counts(decode)[M_VLLM_GENERATION_TOKENS] == 8 * 4
    across = {"do_remote_decode": True, "do_remote_prefill": False}
    where = routed.ask_engine(first[0], prompt=PROMPT, max_tokens=1, kv_transfer_params=across)["kv_transfer_params"]
    later.ask_engine(second[1], prompt=PROMPT, max_tokens=4, kv_transfer_params=where)
    assert later.counts(second[1])[M_VLLM_PROMPT_TOKENS] == 700, "one that goes across is read again, which is seen"
    later.close()


def test_a_router_that_is_told_to_go_ends_what_it_has_begun(routed: RoutedCluster) -> None:
    """Its preStop hook is over by then, and it is asked no more."""
    router = routed.router()
    routed.engine(Role.PREFILL, "127.0.0.25"), routed.engine(Role.DECODE, "127.0.0.26")
    routed.await_routed()
    body = {"model": routed.spec.model, "prompt": PROMPT, "max_tokens": 400, "stream": True}
    words, told = 0, False
    with routed.http.stream("POST", f"{routed.url}/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                words += sum(len(choice["text"].split()) for choice in json.loads(line[6:])["choices"])
            if words and not told:
                router.send(signal.SIGTERM)
                told = True
    assert (words, told) == (400, True)
    eventually("it ends", lambda: not router.running)


@pytest.mark.parametrize("role", [Role.DECODE, Role.PREFILL])
def test_an_engine_that_is_lost_fails_what_it_holds_and_the_next_are_answered(routed: RoutedCluster, role: Role) -> None:
    """Lost with its KV caches. Its pod is still there and said to be Ready, as until its kubelet or a probe finds out."""
    routed.router()
    engines = {(r, i): routed.engine(r, f"127.0.0.{30 + i + 2 * (r is Role.DECODE)}") for r in PAIR for i in (0, 1)}
    routed.await_routed()
    assert [routed.ask(prompt=PROMPT, max_tokens=2).status_code for _ in range(4)] == [200] * 4
    amid: dict[str, Any] = (
        {"prompt": [7] * 16_000, "max_tokens": 4} if role is Role.PREFILL else {"prompt": PROMPT, "max_tokens": 300}
    )
    with ThreadPoolExecutor(8) as pool:
        flying = [pool.submit(routed.ask, **amid) for _ in range(8)]
        time.sleep(1.0)
        assert not any(each.done() for each in flying)
        routed.group[engines[role, 0]].kill()
        answers = [each.result() for each in flying]
    seen = Counter(each.status_code for each in answers)
    after = Counter(routed.ask(prompt=PROMPT, max_tokens=2).status_code for _ in range(8))
    said = sorted({answer.text[:90] for answer in answers if not answer.is_success})
    log.info("%s lost amid 8 requests: clients saw %s, %s; then %s", role.value, dict(seen), said, dict(after))
    assert after == {200: 8}
    assert seen[200] >= 4 and sum(seen.values()) == 8
