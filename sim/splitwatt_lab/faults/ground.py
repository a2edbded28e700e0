"""The ground on which scenes are played: a small site of the demo's parts, its judge, and an observer of its conditions.

Everything a fault may lay hands on is reached from here: processes by name, relays, clocks, disks, objects. Two racks of
two 8-GPU nodes hang on one row; a prefill and a decode replica run in each rack, and the row's limit lies below the sum of
its racks', so that watts freed in one rack are taken in the other at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from splitwatt_core.names import LABEL_RACK

from splitwatt_lab import scenario
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.clocks import Clocks
from splitwatt_lab.faults.mounts import mount_small, private_namespace, unmount
from splitwatt_lab.faults.observer import API, Observer
from splitwatt_lab.faults.relay import Relays
from splitwatt_lab.faults.scene import Json
from splitwatt_lab.faults.verdict import ungoverned, unhealthy
from splitwatt_lab.judge import Judge
from splitwatt_lab.processes import Process
from splitwatt_lab.site import LabSite, LoadSpec, SiteSpec, Stage
from splitwatt_lab.toolbuild import Progress, silent

RACK_W: Final = 14_600
ROW_W: Final = 27_150
"""Both bite while every GPU is hungry: each rack could draw 14 936 W, and the row carries less than its racks together."""
ROW_RESERVE_W: Final = 300
API_BACK_S: Final = 30.0
LEAST_W: Final = 225
"""What a GPU can be held at: its lowest cap is 200 W, and some draw a little more under it."""
STATE_BYTES: Final = 512 * 1024
"""Of the small file system under each agent's record: full within a moment."""
ADOPTION_S: Final = 60.0
SERVING_S: Final = 120.0
_WAIT_S: Final = 0.25


def ground_spec(*, seed: int) -> SiteSpec:
    return SiteSpec(racks=2, nodes_per_rack=2, gpus_per_node=8, seed=seed, load=LoadSpec(requests_per_s=8.0))


class FaultSite(LabSite):
    """A site whose API server, clocks and disks can be taken from single processes."""

    def __init__(self, spec: SiteSpec, directory: Path, *, progress: Progress = silent, stage: Stage = lambda _: None) -> None:
        super().__init__(spec, directory, progress=progress, stage=stage)
        self.clocks = Clocks(directory.resolve() / "clocks")
        self.relays: Relays | None = None
        self._own_mounts = private_namespace()
        self._mounted: list[Path] = []

    def _furnish(self) -> None:
        self.clocks.build()
        self.relays = Relays(self.plane.port(Component.API_SERVER))
        self.relays.__enter__()
        for node in self.node_specs if self._own_mounts else ():
            mount_small(self.state_dir(node.name), size_bytes=STATE_BYTES)
            self._mounted.append(self.state_dir(node.name))

    def close(self) -> None:
        super().close()
        if self.relays is not None:
            self.relays.__exit__()
            self.relays = None
        while self._mounted:
            unmount(self._mounted.pop())

    def disk(self, node: str) -> Path:
        """The agent's own small file system. Raises LabError where none could be mounted."""
        if self.state_dir(node) not in self._mounted:
            raise LabError("scenes of disks mount a small file system, which takes root: run them as root")
        return self.state_dir(node)

    def _kubeconfig(self, account: str, node: str | None) -> Path:
        path = super()._kubeconfig(account, node)
        assert self.relays is not None
        port = self.relays.port("operator" if node is None else f"agent-{node}")
        path.write_text(path.read_text().replace(self.plane.url, self.plane.url.rpartition(":")[0] + f":{port}"))
        return path

    def renew_token(self, node: str) -> None:
        """A token ends with the Node that it was bound to; the agent's next life gets one of the present Node."""
        self._kubeconfig("splitwatt-agent", node)

    def _environment(self, process: str) -> Mapping[str, str]:
        return self.clocks.environment(process)


@dataclass(slots=True)
class Ends:
    """Which processes are down on purpose, and which ended by themselves with what code."""

    down: set[str] = field(default_factory=set)
    ended: dict[str, int] = field(default_factory=dict)


class Ground:
    """See the module's docstring. Use as a context manager: entering starts the site and waits until it serves."""

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        rules: Sequence[Path] = (),
        progress: Progress = silent,
        stage: Stage = lambda _: None,
    ) -> None:
        """`rules`: files of Prometheus rules."""
        self.spec = replace(ground_spec(seed=seed), rules=rules)
        self.site = FaultSite(self.spec, directory, progress=progress, stage=stage)
        self._stage = stage
        self.wiring = scenario.wiring(self.spec)
        self.ends = Ends()
        self.extra: dict[str, Process] = {}
        self.cuts: dict[str, int] = {}
        """Budgets whose limit was lowered, with the watts before."""
        self.base: dict[str, Json] = {}
        """The manifests as first applied, by name."""

    def __enter__(self) -> Self:
        self.site.__enter__()
        try:
            self.judge = Judge(
                twins=self.site.twins,
                wiring=self.wiring,
                plant=self.spec.plant,
                budgets=lambda: self.site.get(f"{API}/powerbudgets?resourceVersion=0")["items"],
            )
            self.observer = Observer(self.site.get)
            self._stage("budgets and clusters")
            self.base = {doc["metadata"]["name"]: doc for doc in (*self.budget_docs(), *self.cluster_docs())}
            docs = [*self.budget_docs(), *scenario.namespaces(self.cluster_docs()), *self.cluster_docs()]
            self.apply(*docs)
            self.judge.start()
            self.observer.__enter__()
            self.site.await_("a healthy site", lambda: self.ailment() is None, timeout_s=ADOPTION_S)
            self.site.await_("the first requests of both clusters", self._serving, timeout_s=SERVING_S)
            self.site.await_("a healthy site", lambda: self.ailment() is None, timeout_s=ADOPTION_S)
        except BaseException:  # whatever ended the start, Ctrl-C too: no process of the site may outlive it
            self.site.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.observer.__exit__()
            self.judge.stop()
        finally:
            self.site.close()

    def _serving(self) -> bool:
        served = self.site.results.read_text() if self.site.results.is_file() else ""
        return all(f'"{doc["metadata"]["name"]}"' in served for doc in self.cluster_docs())

    # ---------------------------------------------------------------------------------------------------------- objects

    def budget_docs(self) -> list[Json]:
        docs = scenario.budgets(self.spec, "PhaseAware")
        docs[0]["spec"] |= {"limitWatts": ROW_W, "reserveWatts": ROW_RESERVE_W}
        for leaf in docs[1:]:
            leaf["spec"]["limitWatts"] = RACK_W
        return docs

    def cluster_docs(self) -> list[Json]:
        """One replica of each role and cluster; the roles of a cluster in different racks, so that each rack has both."""
        chat, batch = scenario.clusters(self.spec)
        for doc, (prefill, decode) in ((chat, ("a1", "a2")), (batch, ("a2", "a1"))):
            doc["spec"]["priority"] = "High"
            doc["spec"]["prefill"]["nodeSelector"][LABEL_RACK] = prefill
            doc["spec"]["decode"]["nodeSelector"][LABEL_RACK] = decode
        return [chat, batch]

    def apply(self, *docs: Json) -> None:
        self.site.kubectl("apply", "-f", "-", stdin=scenario.to_yaml(list(docs)))

    def patch(self, path: str, body: Mapping[str, Any], *, kind: str = "merge-patch+json") -> Json:
        """Patch an object by its API path. Raises LabError."""
        headers = {"Content-Type": f"application/{kind}"}
        response = self.plane.http.patch(path, content=json.dumps(body), headers=headers)
        answer: Json = response.json()
        if response.is_error:
            raise LabError(f"PATCH {path} was refused: {answer.get('message', answer)}")
        return answer

    def delete(self, path: str) -> None:
        """Delete an object by its API path; one that is gone already is fine. Raises LabError."""
        response = self.plane.http.delete(path)
        if response.is_error and response.status_code != 404:
            raise LabError(f"DELETE {path} was refused: {response.json().get('message')}")

    def await_api(self) -> None:
        """Until the API server answers, and its store behind it. Raises LabError when it does not."""
        if self.until(self._api_answers, within_s=API_BACK_S) is None:
            raise LabError(f"the API server does not answer {API_BACK_S:.0f} s after it came back")

    def _api_answers(self) -> bool:
        try:
            return self.plane.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def plane(self) -> ControlPlane:
        return self.site.plane

    @property
    def nodes(self) -> Sequence[str]:
        return [node.name for node in self.site.node_specs]

    # ----------------------------------------------------------------------------------------------------------- limits

    def limit_w(self, budget: str) -> int:
        return self.judge.views[budget].limit_w

    def set_limit(self, budget: str, watts: int) -> None:
        self.patch(f"{API}/powerbudgets/{budget}", {"spec": {"limitWatts": watts}})

    def floor_w(self, budget: str, *, away: frozenset[str] = frozenset()) -> int:
        """The least that a rack can be held at: every GPU near its lowest cap, or at what it was seen to draw above its cap; on
        nodes that are `away` at its present cap."""
        says, nodes = self.judge.views[budget], self.wiring.feeds[budget].nodes
        least_w: dict[str, float] = {node: sum(self._least_w(node)) for node in nodes}
        least_w |= {node: self.judge.looks[node].enforced_w for node in away.intersection(nodes)}
        return (
            round(sum(least_w.values()) * (1 + says.overhead_percent / 100)) + says.non_gpu_w_per_node * len(nodes) + says.fixed_w
        )

    def _least_w(self, node: str) -> list[int]:
        rows = (self.observer.objects["np"].get(node) or {}).get("status", {}).get("gpus", ())
        floors_w = {row["uuid"]: int(row.get("floorWatts", 0)) for row in rows}
        return [max(LEAST_W, floors_w.get(uuid, 0)) for uuid in self.site.twins[node].uuids]

    def cut(self, budget: str, *, from_w: float, by_w: int = 1500, away: frozenset[str] = frozenset()) -> int:
        """Lower a rack's limit below what its caps allow, or allowed (`from_w`), as far as its other nodes can keep it without
        those that are `away`; returns it. The limit before is given back by `restore_limits`."""
        self.cuts.setdefault(budget, self.limit_w(budget))
        if away.issuperset(self.wiring.feeds[budget].nodes):
            away = frozenset()
        target_w = max(self.floor_w(budget, away=away) + 150, round(from_w) - by_w)
        self.set_limit(budget, target_w)
        return target_w

    def restore_limits(self) -> None:
        for budget, watts in self.cuts.items():
            self.set_limit(budget, watts)
        self.cuts.clear()

    def obeyed_s(self, budget: str, limit_w: int, *, within_s: float) -> float | None:
        """Seconds until the enforced caps of a budget fit a limit; None when they do not in time."""
        return self.until(lambda: self.judge.latest[budget].capped_w <= limit_w + 1.0, within_s=within_s, look_s=0.05)

    # ----------------------------------------------------------------------------------------------------------- health

    def ailment(self, *, since_s: float = 0.0) -> str | None:
        """Why the site is not healthy; None when it is, as read within the last second and after `since_s` (Unix time)."""
        if time.time() - self.observer.read_s > 1.0:
            self.observer.look()
        if self.observer.read_s < max(since_s, time.time() - 5.0):
            return "the API server does not answer"
        ungoverned_by = ungoverned(self.observer.leases, time.time())
        clusters = [name for name, doc in self.base.items() if doc["kind"] == "InferenceCluster"]
        return ungoverned_by or unhealthy(self.observer.objects, budgets=self.wiring.feeds, nodes=self.nodes, clusters=clusters)

    def until(self, holds: Callable[[], bool], *, within_s: float, look_s: float = _WAIT_S) -> float | None:
        """Seconds until `holds`; None when it does not within `within_s`."""
        started_s = time.monotonic()
        while not holds():
            if time.monotonic() - started_s > within_s:
                return None
            time.sleep(look_s)
        return time.monotonic() - started_s

    # -------------------------------------------------------------------------------------------------------- processes

    def processes(self) -> dict[str, Process]:
        """Every process of the site by its name."""
        assert self.site.operator is not None
        assert self.site.prometheus.process is not None
        assert self.site.load is not None
        found = {"operator": self.site.operator, "prometheus": self.site.prometheus.process, "twin": self.site.load, **self.extra}
        found |= {f"agent-{node}": process for node, process in self.site.agents.items()}
        return found | {component.value: self.plane.group[component.value] for component in Component}

    def see_ends(self) -> None:
        """Notice who ended unbidden, once each."""
        for name, process in self.processes().items():
            if name in self.ends.down or name in self.ends.ended:
                continue
            code = process.returncode
            if code is not None:
                self.ends.ended[name] = code

    def revive(self) -> list[str]:
        """Start operator and agents that are not running, as a kubelet would; their names."""
        started = []
        for name, process in self.processes().items():
            if process.running or name in self.extra:
                continue
            if name == "operator":
                self.site.start_operator()
            elif name.startswith("agent-"):
                self.site.start_agent(name.removeprefix("agent-"))
            elif name == "prometheus":
                self.site.prometheus.start()
            elif name in set(Component):
                self.plane.start(name)
            else:
                raise LabError(f"{name} ended with code {process.returncode} and cannot be started again (log: {process.log})")
            self.ends.down.discard(name)
            started.append(name)
        return started

    def logs(self) -> dict[str, Path]:
        """The logs of our own processes; those of Kubernetes are not ours to judge."""
        ours = ("operator", "agent-", "twin", "standby")
        return {name: process.log for name, process in self.processes().items() if name.startswith(ours)}


@contextmanager
def log_growth(ground: Ground) -> Iterator[dict[str, str]]:
    """Fills the dictionary, at the end of the block, with what each process wrote to its log meanwhile."""
    before = {name: path.stat().st_size if path.exists() else 0 for name, path in ground.logs().items()}
    grown: dict[str, str] = {}
    try:
        yield grown
    finally:
        for name, path in ground.logs().items():
            if path.exists():
                with path.open("rb") as file:
                    file.seek(before.get(name, 0))
                    grown[name] = file.read().decode(errors="replace")
