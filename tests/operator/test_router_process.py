"""The real vllm-router, with the arguments and the rights that are rendered, before emulated engines on a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, Role, RoleSpec, RouterSpec
from splitwatt_core.names import M_VLLM_GENERATION_TOKENS, M_VLLM_PROMPT_TOKENS
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import ProcessGroup
from support.routed import RoutedCluster
from support.waiting import eventually

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

    chat = routed.ask("/v1/chat/completions", messages=[{"role": "user", "content": "x" * 400}], max_tokens=8, stream=True)
    assert chat.status_code == 200
    frames = [json.loads(line[6:]) for line in chat.text.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for frame in frames for choice in frame["choices"])
    assert text.split() == ["watt"] * 8
    assert routed.answers(f"http://127.0.0.1:{routed.spec.router.metrics_port}/metrics")


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
