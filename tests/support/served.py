"""A small fleet with clusters to serve, in memory: the core's real snapshot, plan, assumptions and keeper, around a truth
that only a test knows. No decision is made in here.

`Fleet` keeps what the API server would hold (`pods`), what the operator's view shows of it (`shown`, which lags until
`watch`), and what the keeper was told (until `keep`). Patches take the way of real ones: bound to a version, accepted,
refused, or lost with the answer, and one that was lost may land later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from splitwatt_core.admission.assumed import Assumed
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import Pod, PodName, pod_fact
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.site import Site, snapshot_of
from splitwatt_core.admission.snapshot import Admission, AdmissionPlan
from splitwatt_core.budget.facts import NodeFact
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.clusters import (
    PAIR,
    ClusterName,
    ClusterSpec,
    EngineSpec,
    EngineType,
    LabelOwners,
    Role,
    RoleSpec,
    cluster_label,
)
from splitwatt_core.gpus.profiles import PhaseProfile, Profile
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import GpuStatus, NodePower, Status, Workload

GPUS = 8
IDLE_W, CLIFF_W, MAX_W = 200, {Role.PREFILL: 450, Role.DECODE: 350, Role.MIXED: 450}, 700
ROW, LOSS = "row", 1.04
MODEL = "Test GPU"
PROFILE = Profile(
    name=MODEL,
    product_names=(),
    idle_w=80,
    min_cap_w=IDLE_W,
    default_cap_w=MAX_W,
    min_clock_mhz=200,
    max_clock_mhz=2000,
    phases=tuple(
        PhaseProfile(role.phase, natural_w=640, cliff_w=CLIFF_W[role], latency_points=((CLIFF_W[role], 1300), (640, 1000)))
        for role in PAIR
    ),
)
NOW_S = 1000.0
"""The keeper's clock stands: nothing here is late or silent."""
RACKS = {"a": ("a0", "a1"), "b": ("b0",)}
RACK_OF = {node: rack for rack, nodes in RACKS.items() for node in nodes}


class Answer(Enum):
    """What becomes of a patch. Of the last two the operator hears nothing; the second did not leave, for want of the Lease."""

    TOLD = "told"
    UNSENT = "not sent"
    LOST = "not stored, or later"
    SILENT = "stored"


@dataclass(frozen=True, slots=True)
class Patch:
    uid: str
    version: int
    leaf: str


def cluster(name: str, *, priority: int = 100, prefill: RoleSpec | None = None, decode: RoleSpec | None = None) -> ClusterSpec:
    return ClusterSpec(
        namespace="s",
        name=name,
        uid=f"uid-{name}",
        generation=1,
        model="m",
        engine=EngineSpec(EngineType.EMULATED),
        prefill=prefill or RoleSpec(1, GPUS),
        decode=decode or RoleSpec(1, GPUS),
        priority=priority,
    )


def unsplit(name: str, mixed: RoleSpec | None = None) -> ClusterSpec:
    return replace(cluster(name), prefill=None, decode=None, mixed=mixed or RoleSpec(1, GPUS))


class Fleet:
    """Two racks below a row, one kind of GPU. See the module's docstring."""

    def __init__(self, *, row_w: int, rack_w: int = 100_000) -> None:
        self.budgets = {ROW: BudgetSpec(ROW, "u-row", 1, row_w, overhead_percent=4)}
        for rack in RACKS:
            self.budgets[rack] = BudgetSpec(
                rack, f"u-{rack}", 1, rack_w, parent=ROW, selector=Selector({"rack": rack}), overhead_percent=4
            )
        self.nodes = {name: NodeFact(name, {"rack": rack}, "boot", gpus=GPUS) for name, rack in RACK_OF.items()}
        self.clusters: dict[ClusterName, ClusterSpec] = {}
        self.pods: dict[PodName, Pod] = {}
        self.shown: dict[PodName, Pod] = {}
        self.roaming: list[Patch] = []
        self.assumed = Assumed()
        self._version = 0
        self._born = 0
        self._monotonic_s = 0.0
        self._told: set[PodName] = set()
        self.keeper = Keeper(term=1, policies=POLICIES, profiles=[PROFILE])
        self.keep()

    # --------------------------------------------------------------------------------------- the world around the operator

    def serve(self, spec: ClusterSpec) -> None:
        self.clusters[spec.id] = spec

    def born(self, spec: ClusterSpec, role: Role, *, rack: str | None = None) -> Pod:
        """A Deployment's controller creates a pod, behind the gate; `rack`: its nodeSelector."""
        self._born += 1
        name = PodName(spec.namespace, f"p{self._born}")
        pod = Pod(
            name=name,
            uid=f"uid-{name.name}",
            version=self._next(),
            label=cluster_label(spec.name),
            role=role,
            gpus=spec.role(role).gpus_per_replica,
            created_s=float(self._born),
            gated=True,
            rules=NodeRules(Selector() if rack is None else Selector({"rack": rack})),
        )
        self.pods[name] = pod
        return pod

    def touch(self, name: PodName, **change: object) -> None:
        """Anything about a pod changes, and so does its version."""
        self.pods[name] = replace(self.pods[name], version=self._next(), **change)  # type: ignore[arg-type]

    def remove(self, name: PodName) -> None:
        del self.pods[name]

    def bind(self) -> None:
        """The scheduler binds what has no gate to the first node of its leaf with room."""
        for pod in list(self.pods.values()):
            if pod.gated or pod.node is not None:
                continue
            for node in RACKS[pod.leaf or ""]:
                if node in self.nodes and self._free(node) >= pod.gpus:
                    self.touch(pod.name, node=node)
                    break

    def _free(self, node: str) -> int:
        return GPUS - sum(pod.gpus for pod in self.pods.values() if pod.node == node)

    def land(self) -> None:
        """Patches that were lost on their way arrive after all."""
        roaming, self.roaming = self.roaming, []
        for patch in roaming:
            self._store(patch)

    # --------------------------------------------------------------------------------------------------------- the operator

    def watch(self, *names: PodName) -> None:
        """The view catches up with these pods, or with all."""
        for name in names or {*self.pods, *self.shown}:
            if name in self.pods:
                self.shown[name] = self.pods[name]
            else:
                self.shown.pop(name, None)

    def keep(self) -> None:
        """The budget loop takes in what the view shows and what the agents report, and decides once."""
        for budget in self.budgets.values():
            self.keeper.on_budget(budget, NOW_S)
        for node in RACK_OF:
            if node in self.nodes:
                self.keeper.on_node(self.nodes[node], NOW_S)
            else:
                self.keeper.on_node_gone(node, NOW_S)
            self.keeper.on_node_power(self._node_power(node), NOW_S)
            self.keeper.on_agent_power(node, 0.0, NOW_S)
        for name in self._told - self.shown.keys():
            self.keeper.on_pod_gone(*name)
        self._told = set(self.shown)
        for pod in self.shown.values():
            fact = pod_fact(pod, self.clusters.get(self.owners.of(pod.name.namespace, pod.label) or ClusterName("", "")))
            assert fact is not None
            self.keeper.on_pod(fact)
        self.keeper.step(NOW_S)

    def _node_power(self, node: str) -> NodePower:
        holders = (pod.name for pod in self.pods.values() if pod.node == node for _ in range(pod.gpus))
        rows = []
        for i in range(GPUS):
            holder = next(holders, None)
            rows.append(
                GpuStatus(
                    uuid=f"{node}-g{i}",
                    management_w=IDLE_W,
                    enforced_w=IDLE_W,
                    min_w=IDLE_W,
                    max_w=MAX_W,
                    default_w=MAX_W,
                    model=MODEL,
                    workload=None if holder is None else Workload(*holder),
                )
            )
        status = Status(observed_uid=f"np-{node}", boot_id="boot", gpus=tuple(rows))
        return NodePower(node, f"np-{node}", self._next(), None, status)

    @property
    def owners(self) -> LabelOwners:
        return LabelOwners(dict.fromkeys(self.clusters, 0.0))

    def site(self) -> Site:
        return Site(
            budgets=self.budgets,
            clusters=dict(self.clusters),
            owners=self.owners,
            pods=dict(self.shown),
            nodes=dict(self.nodes),
            gpus={node: self._node_power(node).status.gpus for node in RACK_OF},
            profiles=[PROFILE],
            floor_room_w={name: self.keeper.floor_room_w(name) for name in self.budgets},
            counted=self.keeper.floors_counted(),
            awaited=self.keeper.nodes_awaited(),
            assumed=self.assumed.leaves(),
        )

    def decide(self) -> AdmissionPlan:
        """One look of admission; what it decides is assumed from now on."""
        self.assumed.settle(self.shown.values())
        plan = plan_admission(snapshot_of(self.site()))
        self.assumed.take(plan.admissions)
        return plan

    def send(self, answers: Iterator[Answer]) -> None:
        """Send what is due, one answer each."""
        self._monotonic_s += 10.0
        for admission in self.assumed.due(self._monotonic_s):
            uid, shown = admission.need.uid, self.shown.get(admission.need.pod)
            if shown is None or not shown.gated:
                continue
            patch, answer = Patch(uid, shown.version, admission.leaf), next(answers)
            if answer is Answer.UNSENT:
                self.assumed.unsent(uid)
                continue
            self.assumed.sent(uid, version=patch.version, now_s=self._monotonic_s)
            self._ask(patch, answer)

    def _ask(self, patch: Patch, answer: Answer) -> None:
        if answer is Answer.LOST:
            self.roaming.append(patch)
            self.assumed.unknown(patch.uid)
            return
        name = self._store(patch)
        if answer is Answer.SILENT:
            self.assumed.unknown(patch.uid)
        elif name is not None:
            self.watch(name)
        else:
            self.assumed.refused(patch.uid)

    def admit(self, *answers: Answer) -> AdmissionPlan:
        """Decide and send; what has no answer here is told."""
        plan = self.decide()
        self.send(iter([*answers, *[Answer.TOLD] * 1000]))
        return plan

    def _store(self, patch: Patch) -> PodName | None:
        """The API server's side: only this version, only while it is gated."""
        for name, pod in self.pods.items():
            if pod.uid == patch.uid and pod.version == patch.version and pod.gated:
                self.touch(name, gated=False, leaf=patch.leaf)
                return name
        return None

    # ------------------------------------------------------------------------------------------------------------ the truth

    def promised_w(self, budget: str) -> float:
        """Meter watts that floors below a budget come to, once everything that was or may be let through runs: each pod of
        the API server past its gate, each patch that may still land, each decision that stands. Idle GPUs at their minimum."""
        pods = {pod.uid: pod for pod in self.pods.values()}
        places = {uid: RACK_OF.get(pod.node or "", pod.leaf or "") for uid, pod in pods.items() if not pod.gated}
        asked = {p.uid: p.leaf for p in self.roaming if p.uid in pods and pods[p.uid].version == p.version}
        for uid, leaf in (*asked.items(), *self.assumed.leaves().items()):
            if uid in pods:
                places.setdefault(uid, leaf)
        racks = [budget] if budget in RACKS else list(RACKS)
        total_w = sum(LOSS * IDLE_W * GPUS * len(RACKS[rack]) for rack in racks)
        for uid, leaf in places.items():
            if leaf in racks:
                total_w += LOSS * pods[uid].gpus * (self.floor_w(pods[uid]) - IDLE_W)
        return total_w

    def floor_w(self, pod: Pod) -> float:
        """Of one GPU, from the rule's words: the cliff of its phase, or a ceiling below it, never below the minimum."""
        assert pod.role is not None
        spec = next((c for c in self.clusters.values() if cluster_label(c.name) == pod.label), None)
        ceiling_w = None if spec is None else spec.role(pod.role).power_ceiling_w
        return max(IDLE_W, min(CLIFF_W[pod.role], math.inf if ceiling_w is None else ceiling_w))

    def past(self) -> list[Pod]:
        return [pod for pod in self.pods.values() if not pod.gated]

    def _next(self) -> int:
        self._version += 1
        return self._version


def reserved(plan: AdmissionPlan) -> list[Admission]:
    """Admissions that cost watts."""
    return [admission for admission in plan.admissions if admission.reservation_w > 0]
