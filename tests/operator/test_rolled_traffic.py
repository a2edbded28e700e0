"""A rollout as the rule plans it, with real routers before emulated engines on a real API server, under traffic."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from splitwatt_core.clusters import PAIR, ClusterSpec, EngineSpec, EngineType, Role, RoleSpec, RouterSpec
from splitwatt_core.names import M_VLLM_PROMPT_TOKENS
from splitwatt_core.serving.rollout import PoolState, RevisionState, RolloutPlan, plan_rollout
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import Process, ProcessGroup
from support.routed import RoutedCluster
from support.waiting import eventually

EVERY_S = 0.25
LEAVE_S = 5.0
"""Of an engine's and a router's preStop hook."""
TWO = dict.fromkeys(PAIR, 2)


class Rack:
    """Plays Deployments and kubelets: what a plan says is done to processes. An engine or a router that is told to go is found no
    more at once, and is ended some seconds later."""

    def __init__(self, *clusters: RoutedCluster) -> None:
        self.clusters = {cluster.revision: cluster for cluster in clusters}
        self.engines: dict[str, dict[Role, list[str]]] = {revision: {role: [] for role in PAIR} for revision in self.clusters}
        self.routers: dict[str, Process] = {}
        self.leaving: dict[str, float] = {}
        self.read_by_decode = 0
        self._addresses = iter(range(50, 250))

    def state(self) -> dict[str, RevisionState]:
        return {
            revision: RevisionState(
                {role: PoolState(len(names), len(names)) for role, names in by.items()},
                revision in self.routers,
                int(revision in self.reached()),
            )
            for revision, by in self.engines.items()
            if any(by.values()) or revision in self.routers
        }  # fmt: skip

    def reached(self) -> list[str]:
        """Revisions whose routers the Service leads to."""
        return [
            r for r in self.routers if r not in self.leaving and self.clusters[r].answers(f"{self.clusters[r].url}/readiness")
        ]

    def do(self, plan: RolloutPlan) -> None:
        for revision, wanted in plan.replicas.items():
            for role, count in wanted.items():
                while len(self.engines[revision][role]) > count:
                    self._end(revision, role)
        for revision, wanted in plan.replicas.items():
            for role, count in wanted.items():
                while len(self.engines[revision][role]) < count:
                    name = self.clusters[revision].engine(role, f"127.0.0.{next(self._addresses)}")
                    self.engines[revision][role].append(name)
        for revision in plan.routers - self.routers.keys():
            self.routers[revision] = self.clusters[revision].router()
        for revision in self.routers.keys() - plan.routers:
            self.leaving.setdefault(revision, time.monotonic())
        for revision, told_s in list(self.leaving.items()):
            if time.monotonic() - told_s > LEAVE_S and self.routers[revision].running:
                self.routers[revision].send(signal.SIGTERM)
            if not self.routers[revision].running:
                del self.routers[revision], self.leaving[revision]

    def _end(self, revision: str, role: Role) -> None:
        cluster, name = self.clusters[revision], self.engines[revision][role].pop(0)
        cluster.leave(name)
        time.sleep(LEAVE_S)
        if role is Role.DECODE:
            self.read_by_decode += int(cluster.counts(name)[M_VLLM_PROMPT_TOKENS])
        cluster.group[name].send(signal.SIGTERM)


class Clients:
    """Ask all the time, through a router that takes requests."""

    def __init__(self, rack: Rack) -> None:
        self.rack, self.seen, self.wrong = rack, Counter[str](), list[str]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(4)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=60) as http:
            while not self._stop.wait(EVERY_S):
                reached = self.rack.reached()
                if not reached:
                    self.wrong.append("no router takes requests")
                    continue
                revision = sorted(reached)[number % len(reached)]
                body = {"model": self.rack.clusters[revision].spec.model, "prompt": list(range(700)), "max_tokens": 24}
                try:
                    answer = http.post(f"{self.rack.clusters[revision].url}/v1/completions", json=body)
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                    continue
                self.seen[revision] += 1
                if answer.status_code != 200 or answer.json()["usage"]["completion_tokens"] != 24:
                    self.wrong.append(answer.text[:200])


@pytest.fixture
def rack(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Rack]:
    pool = RoleSpec(replicas=2, gpus_per_replica=1)
    first = ClusterSpec(
        namespace=namespace, name="chat", uid="u", generation=1, model="meta-llama/Llama-3.1-8B-Instruct",
        engine=EngineSpec(EngineType.EMULATED, port=free_port()), prefill=pool, decode=pool,
        router=RouterSpec(metrics_port=free_port()),
    )  # fmt: skip
    second = replace(
        first, engine=replace(first.engine, args=("--block-size=32",)), router=RouterSpec(metrics_port=free_port())
    )  # fmt: skip
    with ProcessGroup(tmp_path) as group:
        clusters = [RoutedCluster(control_plane, group, spec, revision=name) for name, spec in (("a", first), ("b", second))]
        clusters[0].apply_rights()
        yield Rack(*clusters)
        for cluster in clusters:
            cluster.close()


def test_two_and_two_are_rolled_and_each_request_is_answered(rack: Rack) -> None:
    rack.do(plan_rollout({}, newest="a", replicas=TWO))
    eventually("a serves", lambda: rack.reached() == ["a"])
    with Clients(rack) as clients:
        deadline_s = time.monotonic() + 240
        while set(rack.routers) != {"b"} or rack.engines["a"] != {role: [] for role in PAIR} or rack.reached() != ["b"]:
            assert time.monotonic() < deadline_s, (rack.engines, rack.routers)
            rack.do(plan_rollout(rack.state(), newest="b", replicas=TWO))
            time.sleep(0.5)
        rack.do(plan_rollout(rack.state(), newest="b", replicas=TWO))
        time.sleep(3)
    assert all(len(names) == 2 for names in rack.engines["b"].values())
    assert min(clients.seen["a"], clients.seen["b"]) > 8 and not clients.wrong, (clients.seen, clients.wrong[:3])
    still = sum(int(rack.clusters["b"].counts(name)[M_VLLM_PROMPT_TOKENS]) for name in rack.engines["b"][Role.DECODE])
    assert rack.read_by_decode + still == 0, "no prompt was read twice, so none went across"
