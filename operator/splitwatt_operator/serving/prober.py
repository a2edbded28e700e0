"""Proves of each cluster that its KV caches move: one request with a prompt of its own, and the engines' counters around it.

Gentle: a prompt of a few blocks and two tokens, through the router as a client would send it, once every some minutes while
all is well, and within a minute again after a verdict that is bad or open. At once, though, when an engine came, went or was
restarted, and when a decode engine counts what a healthy one never does: a prompt read by itself, a transfer that failed.
The request never says where a KV cache lies: a router alone may, for an engine that is told so without an address ends on it.

What was proven stays so until a probe says otherwise, also over a restart of the operator: then it is what the status says.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from splitwatt_core.clusters import ClusterName, ClusterSpec, Role, cluster_label
from splitwatt_core.conditions import Condition, condition_from_wire
from splitwatt_core.names import LABEL_CLUSTER, LABEL_ROLE, LABEL_ROUTER
from splitwatt_core.rendering.objects import object_name, selector_labels
from splitwatt_core.serving.kv_proof import Circumstances, KvCounters, KvReason, KvVerdict, Looks, judge
from splitwatt_core.serving.provable import why_not

from splitwatt_operator.cluster.store import JsonObject, Kind, Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.serving.engines import UNREACHABLE, Answer, Engines, closed
from splitwatt_operator.serving.revisions import routers_ready

log = logging.getLogger(__name__)

CONDITION: Final = "KVTransferVerified"
TICK_S: Final = 2.0
AGAIN_S: Final = 300.0
"""After a proof."""
SOON_S: Final = 15.0
"""After any other verdict, and while a probe cannot be made: a broken transfer is told within a minute. After a proof, between
two glances at what decode engines have counted."""
ANSWER_S: Final = 40.0
"""The first transfer between two engines alone takes up to 18 s."""
COUNTED_S: Final = 1.0
"""Between two looks at counters that do not show the request yet."""
LOOKS: Final = 4
AT_ONCE: Final = 4
"""Clusters that are probed side by side."""
WORDS: Final = 160
"""Of a prompt: some 500 tokens with any tokenizer, four blocks of the largest size."""
TOKENS: Final = 2
MAX_SENTENCE_CHARS: Final = 600


Lives: TypeAlias = frozenset[tuple[str, int]]
"""Of a cluster's ready engines: each pod's uid, and how often its containers were restarted."""


@dataclass(slots=True)
class _Known:
    """What is known of one cluster. `uid`, `generation`: of whom. `block_bytes`: as its last proof showed them. `lives`: the
    engines of the last verdict. `counted`: by the decode engines, when they were last looked at."""

    uid: str
    generation: int
    verdict: Condition
    asked_s: float = float("-inf")
    every_s: float = SOON_S
    block_bytes: int | None = None
    lives: Lives = frozenset()
    glanced_s: float = float("-inf")
    counted: Mapping[str, KvCounters] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Probe:
    """One request that was answered, or not: `urls` of the decode engines, and what they had counted `before`."""

    urls: Mapping[str, str]
    before: Mapping[str, KvCounters]
    answer: Answer
    block_bytes: int | None

    async def judged(self, engines: Engines, around: Circumstances) -> tuple[KvVerdict, Mapping[str, KvCounters]]:
        """And what was counted. Looked at again while the engines do not count the request yet. Raises one of UNREACHABLE."""
        for look in range(LOOKS):
            after = await engines.counters(self.urls)
            verdict = judge(
                {name: Looks(self.before[name], after[name]) for name in self.urls},
                status=self.answer.status,
                prompt_tokens=self.answer.prompt_tokens,
                known_block_bytes=self.block_bytes,
                around=around,
            )
            if verdict.reason is not KvReason.NOT_COUNTED or look == LOOKS - 1:
                break
            await asyncio.sleep(COUNTED_S)
        return verdict, after


class Prober:
    """`run` until cancelled. `changed` is told of each cluster whose condition is another one."""

    def __init__(self, store: Store, view: View, changed: Callable[[ClusterName], None]) -> None:
        self._store = store
        self._view = view
        self._changed = changed
        self._known: dict[ClusterName, _Known] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._under_way: dict[ClusterName, asyncio.Task[None]] = {}

    def condition(self, spec: ClusterSpec, previous: Mapping[str, Any]) -> Condition:
        """What is known now. `previous`: the cluster's status as it was read, for a proof that a predecessor made."""
        if (reason := why_not(spec)) is not None:
            # Engines that come after that are none of those of which something was proven.
            self._known.pop(spec.id, None)
            return Condition(CONDITION, None, *reason)
        known = self._known.get(spec.id)
        if known is None or known.uid != spec.uid:
            known = self._known[spec.id] = _Known(spec.uid, spec.generation, _former(previous))
        return known.verdict

    async def run(self) -> None:
        async with Engines() as engines:
            try:
                while True:
                    self._begin(engines)
                    await asyncio.sleep(TICK_S)
            finally:
                for task in self._under_way.values():
                    task.cancel()
                await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    def _begin(self, engines: Engines) -> None:
        for name in [name for name, task in self._under_way.items() if task.done()]:
            del self._under_way[name]
        specs = {ClusterName(*key): seen.fact for key, seen in self._view.clusters.items() if not seen.terminating}
        for name in self._known.keys() - specs.keys():
            del self._known[name]
        now_s, living = time.monotonic(), self._living()
        for name, spec in specs.items():
            known = self._known.get(name)
            if spec is None or known is None or name in self._under_way or why_not(spec) is not None:
                continue
            lives = living.get((spec.namespace, cluster_label(spec.name)), frozenset())
            same = known.generation == spec.generation and known.lives == lives
            if now_s - known.asked_s >= (known.every_s if same else SOON_S):
                known.asked_s = now_s
                self._under_way[name] = asyncio.create_task(self._prove(engines, spec, known, lives))
            elif known.verdict.status and now_s - max(known.asked_s, known.glanced_s) >= SOON_S:
                known.glanced_s = now_s
                self._under_way[name] = asyncio.create_task(self._glance(engines, spec, known))

    async def _glance(self, engines: Engines, spec: ClusterSpec, known: _Known) -> None:
        """Is the next probe due before its time? A healthy decode engine reads no prompt, and no transfer to it fails."""
        urls = {name: _url(host, spec.engine.port) for name, host in self._engines(spec, Role.DECODE).items()}
        try:
            counted = await engines.counters(urls)
        except UNREACHABLE as error:
            log.info("not looked at: %s", error, extra={"cluster": str(spec.id)})
            return
        before, known.counted = known.counted, counted
        if any(_ails(before[name], counted[name]) for name in counted.keys() & before.keys()):
            known.every_s = SOON_S

    async def _prove(self, engines: Engines, spec: ClusterSpec, known: _Known, lives: Lives) -> None:
        try:
            async with self._turns:
                found = await self._probe(engines, spec, known)
        except UNREACHABLE as error:
            log.info("not probed: %s", error, extra={"cluster": str(spec.id)})
            return
        except Exception:  # one cluster's odd answers must not end the operator
            log.exception("probing failed", extra={"cluster": str(spec.id)})
            return
        if found is None:
            return
        verdict, known.counted = found
        known.generation, known.lives = spec.generation, lives
        known.every_s = AGAIN_S if verdict.verified else SOON_S
        if verdict.verified:
            known.block_bytes = verdict.block_bytes
        elif verdict.verified is None:
            log.info("undecided: %s", verdict.message, extra={"cluster": str(spec.id)})
            if known.verdict.status is not None:
                return
        before, known.verdict = known.verdict, _told(verdict)
        if before != known.verdict:
            self._changed(spec.id)

    async def _probe(
        self, engines: Engines, spec: ClusterSpec, known: _Known
    ) -> tuple[KvVerdict, Mapping[str, KvCounters]] | None:
        """None while there is nobody to ask. Raises one of UNREACHABLE."""
        prefill, decode = (self._engines(spec, role) for role in (Role.PREFILL, Role.DECODE))
        way_in = self._way_in(spec)
        if way_in is None or not prefill or not decode:
            return None
        port, side = spec.engine.port, spec.kv_transfer.side_channel_port
        urls = {name: _url(host, port) for name, host in decode.items()}
        before = await engines.counters(urls)
        words = " ".join(secrets.token_hex(2) for _ in range(WORDS))
        body = {"model": spec.served_name, "prompt": words, "max_tokens": TOKENS, "temperature": 0}
        answer = await engines.complete(way_in, body, within_s=ANSWER_S)
        probe = _Probe(urls, before, answer, known.block_bytes if known.generation == spec.generation else None)
        verdict, after = await probe.judged(engines, Circumstances({}))
        if verdict.verified is False:
            both = {name: _url(host, port) for name, host in (prefill | decode).items()}
            shown = await engines.counters({name: both[name] for name in prefill})
            around = Circumstances(
                versions=await engines.versions(both),
                unconnected=[name for name, counters in shown.items() if counters.moved_bytes is None],
                closed=await closed(prefill, side),
                side_channel_port=side,
            )
            verdict, after = await probe.judged(engines, around)
        return verdict, after

    def _living(self) -> Mapping[tuple[str, str], Lives]:
        """By namespace and cluster label."""
        found: dict[tuple[str, str], set[tuple[str, int]]] = {}
        for pod in self._store.all(Kind.POD):
            meta, status = pod["metadata"], pod.get("status") or {}
            labels = meta.get("labels") or {}
            if LABEL_CLUSTER in labels and LABEL_ROLE in labels and not meta.get("deletionTimestamp") and _ready(status):
                restarts = sum(each.get("restartCount", 0) for each in status.get("containerStatuses") or ())
                found.setdefault((meta["namespace"], labels[LABEL_CLUSTER]), set()).add((meta["uid"], restarts))
        return {key: frozenset(lives) for key, lives in found.items()}

    def _engines(self, spec: ClusterSpec, role: Role) -> dict[str, str]:
        """Addresses of the role's ready pods, by name."""
        wanted = selector_labels(spec.name, role).items()
        found = {}
        for pod in self._store.all(Kind.POD):
            meta, status = pod["metadata"], pod.get("status") or {}
            if meta["namespace"] != spec.namespace or meta.get("deletionTimestamp") or not status.get("podIP"):
                continue
            if wanted <= (meta.get("labels") or {}).items() and _ready(status):
                found[meta["name"]] = status["podIP"]
        return found

    def _way_in(self, spec: ClusterSpec) -> str | None:
        """The address of the Service that clients use; None while no router is ready behind it."""
        service = self._store.get(Kind.SERVICE, object_name(spec.name), spec.namespace) or {}
        found = service.get("spec") or {}
        host, behind = found.get("clusterIP"), found.get("selector") or {}
        if not host or LABEL_ROUTER not in behind or not routers_ready(self._store, spec):
            return None
        return _url(host, spec.engine.port)


def _ails(before: KvCounters, after: KvCounters) -> bool:
    return after.computed_tokens > before.computed_tokens or (after.failed or 0) > (before.failed or 0)


def _ready(status: JsonObject) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _told(verdict: KvVerdict) -> Condition:
    return Condition(CONDITION, verdict.verified, verdict.reason.value, verdict.message[:MAX_SENTENCE_CHARS])


def _former(previous: Mapping[str, Any]) -> Condition:
    rows = [condition_from_wire(row) for row in previous.get("conditions") or ()]
    former = next((row for row in rows if row.type == CONDITION and row.status is not None), None)
    if former is not None:
        return Condition(CONDITION, former.status, former.reason, former.message)
    return Condition(CONDITION, None, "NotProbed", "No probe has gone through the router yet.")
