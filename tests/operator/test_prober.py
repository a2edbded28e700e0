"""Probes through the real vllm-router, before engines whose counters move as vLLM's do; and what is made of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from splitwatt_core.clusters import ClusterName
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import ProcessGroup
from splitwatt_operator.cluster.store import Kind
from splitwatt_operator.serving import prober as prober_of
from splitwatt_operator.serving.engines import counters_of
from splitwatt_operator.serving.prober import Prober
from support.counting_engine import BLOCK_BYTES, REMOTE, CountingEngine
from support.objects import Objects
from support.waiting import PATIENCE_S

NAME = ClusterName("s", "chat")
RECORDED = Path(__file__).with_name("recorded")


@dataclass
class Scene:
    """A cluster in the store, its two engines, and the router at the address of its Service."""

    objects: Objects
    prober: Prober
    prefill: CountingEngine
    decode: CountingEngine
    changed: list[ClusterName]

    def condition(self) -> tuple[bool | None, str, str]:
        seen = self.objects.view.cluster(NAME)
        assert seen is not None and seen.fact is not None
        row = self.prober.condition(seen.fact, seen_status(self.objects))
        return row.status, row.reason, row.message

    def ready(self, role: str, name: str, *, restarts: int = 0) -> None:
        engine = self.prefill if role == "prefill" else self.decode
        labels = {"splitwatt.io/cluster": "chat", "splitwatt.io/role": role}
        conditions = [{"type": "Ready", "status": "True"}]
        status = {"podIP": engine.host, "conditions": conditions, "containerStatuses": [{"restartCount": restarts}]}
        self.objects.put(Kind.POD, name, meta={"labels": labels}, spec={"containers": []}, status=status)

    async def until(self, reason: str) -> tuple[bool | None, str, str]:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self.condition()[1] != reason:  # noqa: ASYNC110 - as a person would look at it
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"wanted {reason}, has {self.condition()}") from None
        return self.condition()


def seen_status(objects: Objects) -> dict[str, Any]:
    obj = objects.store.get(Kind.CLUSTER, NAME.name, NAME.namespace)
    assert obj is not None
    status: dict[str, Any] = obj.get("status") or {}
    return status


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(prober_of, "SOON_S", 0.3)
    monkeypatch.setattr(prober_of, "AGAIN_S", 0.3)
    monkeypatch.setattr(prober_of, "TICK_S", 0.05)
    port, side = free_port(), free_port()
    objects, changed = Objects(), []  # type: ignore[var-annotated]
    pool = {"replicas": 1, "gpusPerReplica": 1}
    cluster = objects.cluster(
        engine={"type": "VLLM", "port": port}, prefill=pool, decode=pool, kvTransfer={"sideChannelPort": side},
    )  # fmt: skip
    prober = Prober(objects.store, objects.view, changed.append)
    async with AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(CountingEngine("127.0.0.11", port, side))
        decode = await stack.enter_async_context(CountingEngine("127.0.0.12", port, side))
        group = stack.enter_context(ProcessGroup(tmp_path))
        argv = ["--vllm-pd-disaggregation", "--kv-connector", "nixl", "--policy", "round_robin", "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--prometheus-port", str(free_port())]
        argv += ["--prefill", f"http://{prefill.host}:{port}", "--decode", f"http://{decode.host}:{port}"]
        router = group.start("router", [str(Path(sys.executable).with_name("vllm-router")), *argv])
        async with httpx.AsyncClient() as http, asyncio.timeout(PATIENCE_S):
            while not await answers(http, f"http://127.0.0.1:{port}/readiness"):
                assert router.running, router.log.read_text()
                await asyncio.sleep(0.1)
        reached = {"clusterIP": "127.0.0.1", "selector": {"splitwatt.io/router": "chat"}}
        objects.put(Kind.SERVICE, "chat", meta={"namespace": "s"}, spec=reached)
        owned = {"ownerReferences": [{"controller": True, "uid": cluster["metadata"]["uid"]}]}
        selects = {"selector": {"matchLabels": {"splitwatt.io/router": "chat"}}}
        objects.put(Kind.DEPLOYMENT, "chat-router", meta=owned, spec=selects, status={"readyReplicas": 1})
        made = Scene(objects, prober, prefill, decode, changed)
        for role in ("prefill", "decode"):
            made.ready(role, f"chat-{role}-x")
        made.condition()  # as the first look at the cluster asks for it
        task = asyncio.create_task(prober.run())
        yield made
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


async def test_a_transfer_is_proven_and_what_breaks_later_is_told(scene: Scene) -> None:
    status, _, message = await scene.until("Verified")
    assert status is True
    assert f"blocks of {BLOCK_BYTES}" in message and "decode engine chat-decode-x" in message
    assert scene.changed == [NAME]
    prompts = [body["prompt"] for body in scene.prefill.asked]
    assert len(set(prompts)) == len(prompts), "each is new"
    assert all(len(body["prompt"]) / 4 > 128 for body in scene.prefill.asked), "more than one block"
    sent = [body.get("kv_transfer_params") or {} for body in (*scene.prefill.asked, *scene.decode.asked)]
    assert all(all(key in params for key in REMOTE) for params in sent if params.get("do_remote_prefill"))

    scene.decode.fetch = "recompute"
    status, _, message = await scene.until("DecodeRecomputes")
    assert status is False and "the prompt was computed again there" in message
    await scene.prefill.close_side_channel()
    _, _, message = await scene.until("SideChannelClosed")
    assert f"side channel port {scene.prefill.side_port} of prefill engine chat-prefill-x" in message


@pytest.mark.parametrize("engine", ["comes", "restarts"])
async def test_an_engine_that_is_another_one_is_probed_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    await quiet(scene, monkeypatch)
    scene.decode.fetch = "recompute"
    if engine == "comes":
        scene.objects.remove(Kind.POD, "chat-decode-x")
        scene.ready("decode", "chat-decode-y")
    else:
        scene.ready("decode", "chat-decode-x", restarts=1)
    assert (await scene.until("DecodeRecomputes"))[0] is False


async def test_what_a_healthy_decode_engine_never_counts_is_probed_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent network: no pod changes, and a client's request is answered all the same."""
    await quiet(scene, monkeypatch)
    scene.decode.fetch = "recompute"
    assert not await asks_within(scene, 1.0) and scene.condition()[0] is True, "nobody has asked yet"
    await ask_as_a_client(scene)
    assert (await scene.until("DecodeRecomputes"))[0] is False


async def test_a_break_right_after_the_first_proof_is_seen_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody has looked at the counters again."""
    monkeypatch.setattr(prober_of, "AGAIN_S", 1000.0)
    monkeypatch.setattr(prober_of, "SOON_S", 2.0)
    await scene.until("Verified")
    scene.decode.fetch = "recompute"
    await ask_as_a_client(scene)
    assert (await scene.until("DecodeRecomputes"))[0] is False


async def ask_as_a_client(scene: Scene) -> None:
    async with httpx.AsyncClient() as http:
        body = {"model": "m", "prompt": "of a client " * 80, "max_tokens": 2}
        answer = await http.post(f"http://127.0.0.1:{scene.prefill.port}/v1/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200


async def quiet(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proven, and the next probe by the clock is far."""
    monkeypatch.setattr(prober_of, "AGAIN_S", 1000.0)
    await scene.until("Verified")
    async with asyncio.timeout(PATIENCE_S):
        while await asks_within(scene, 1.0):
            pass


async def asks_within(scene: Scene, seconds: float) -> int:
    before = len(scene.prefill.asked)
    await asyncio.sleep(seconds)
    return len(scene.prefill.asked) - before


async def test_a_transfer_that_fails_the_request_is_told(scene: Scene) -> None:
    scene.decode.fetch = "fail"
    status, _, message = await scene.until("TransferFailed")
    assert status is False and "transfers failed at decode engine chat-decode-x" in message
    scene.prefill.version = "0.33.0"
    _, _, message = await scene.until("VersionsDiffer")
    assert "versions 0.32.0 and 0.33.0" in message
    scene.decode.fetch = "moves"
    assert (await scene.until("Verified"))[0] is True


async def test_a_prefill_without_a_connector_is_told_though_every_answer_is_well(scene: Scene) -> None:
    scene.prefill.connector = False
    await scene.prefill.close_side_channel()  # as an engine without a connector opens none
    status, _, message = await scene.until("NoConnector")
    assert status is False and message.startswith("Prefill engine chat-prefill-x shows no counter of a KV connector")
    scene.prefill.connector, scene.decode.connector = True, False
    async with asyncio.timeout(PATIENCE_S):
        while not scene.condition()[2].startswith("Decode engine chat-decode-x shows no counter"):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    assert scene.condition()[:2] == (False, "NoConnector")


async def test_nobody_to_ask_keeps_what_a_predecessor_proved(scene: Scene) -> None:
    await scene.until("Verified")
    row = {"type": "KVTransferVerified", "status": "True", "reason": "Verified", "message": "once"}
    fresh = Prober(scene.objects.store, scene.objects.view, scene.changed.append)
    seen = scene.objects.view.cluster(NAME)
    assert seen is not None and seen.fact is not None
    kept = fresh.condition(seen.fact, {"conditions": [row]})
    assert (kept.status, kept.message) == (True, "once")
    assert Prober(scene.objects.store, scene.objects.view, print).condition(seen.fact, {}).reason == "NotProbed"


def test_what_was_proven_is_forgotten_with_the_last_engine_of_a_role() -> None:
    """Those that come with the next scale are others, and `Ready` must not lean on a proof of the former ones."""
    objects, pool = Objects(), {"replicas": 1, "gpusPerReplica": 1}
    prober = Prober(objects.store, objects.view, lambda _: None)

    def told(replicas: int, status: str, reason: str) -> str:
        """After the status said this."""
        objects.cluster(engine={"type": "VLLM"}, prefill=pool, decode={**pool, "replicas": replicas})
        seen = objects.view.cluster(NAME)
        assert seen is not None and seen.fact is not None
        row = {"type": prober_of.CONDITION, "status": status, "reason": reason, "message": "."}
        return prober.condition(seen.fact, {"conditions": [row]}).reason

    assert told(1, "True", "Verified") == "Verified", "a predecessor's"
    assert told(0, "True", "Verified") == "ScaledToZero"
    assert told(1, "Unknown", "ScaledToZero") == "NotProbed"


def test_a_real_engines_page_is_read_as_it_is() -> None:
    """vLLM 0.32 on CPUs with NixlConnector, before and after six probes through vllm-router: lines of its /metrics."""
    before, after = ((RECORDED / f"vllm-0.32-decode-{when}.txt").read_text() for when in ("before", "after"))
    fresh = counters_of(before)
    assert (fresh.tokens, fresh.moved_bytes, fresh.failed, fresh.block_tokens) == (0, 0, 0, 128), "shown before anything moved"
    found = counters_of(after)
    assert (found.external_tokens, found.computed_tokens, found.cached_tokens, found.failed) == (2786, 0, 0, 0)
    assert found.moved_bytes == 6 * 4 * BLOCK_BYTES, "each of some 460 tokens: four blocks of 128"


def test_engines_of_one_process_count_together_and_what_is_not_shown_is_unknown() -> None:
    page = "".join(
        f'vllm:nixl_bytes_transferred_sum{{engine="{i}"}} 1.5e+03\n'
        f'vllm:prompt_tokens_by_source_total{{engine="{i}",source="local_compute"}} 7.0\n'
        for i in range(2)
    )
    found = counters_of(page)
    assert (found.moved_bytes, found.computed_tokens, found.failed, found.block_tokens) == (3000, 14, None, None)
    assert counters_of("").moved_bytes is None
