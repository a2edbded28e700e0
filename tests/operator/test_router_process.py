"""The real vllm-router, with the arguments and the rights that are rendered, before emulated engines on a real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, Role, RoleSpec, RouterSpec
from splitwatt_core.names import M_VLLM_GENERATION_TOKENS, M_VLLM_PROMPT_TOKENS, M_VLLM_TTFT
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import ProcessGroup
from support.routed import RoutedCluster
from support.waiting import eventually

PROMPT = list(range(700))


@pytest.fixture
def routed(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[RoutedCluster]:
    pool = RoleSpec(replicas=1, gpus_per_replica=1)
    spec = ClusterSpec(
        namespace=namespace, name="chat", uid="u", generation=1, model="meta-llama/Llama-3.1-8B-Instruct",
        engine=EngineSpec(EngineType.EMULATED, port=free_port()), prefill=pool, decode=pool,
        router=RouterSpec(metrics_port=free_port()),
    )  # fmt: skip
    with ProcessGroup(tmp_path) as group:
        cluster = RoutedCluster(control_plane, group, spec)
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
