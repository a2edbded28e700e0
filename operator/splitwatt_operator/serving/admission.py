"""Performs power admission: looks about once a second while anyone waits, and lifts gates as the plan says.

One patch per pod takes our gate out, narrows the node affinity to the leaf and notes the leaf as an annotation, which is
the reservation: a restarted operator reads it back. The patch is bound to the version the decision was made on, and
Kubernetes takes it only while the pod is gated. Snapshot, decide, assume, apply: from before it is sent until the watch
shows its effect, a patch counts as done, so no watt is promised twice; a refusal ends that, an unknown outcome does not
until a fresh read tells.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import PODS
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.snapshot import Admission, AdmissionSnapshot, Name, Verdict
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import Role
from splitwatt_core.names import ANNOTATION_BUDGET, GATE_POWER
from splitwatt_shell.waiting import woken

from splitwatt_operator.cluster.facts import subject_of
from splitwatt_operator.cluster.store import JsonObject, Kind, Store
from splitwatt_operator.pen import NotSent, Pen, Stored
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving.pods import Surveyor, gated, required_terms

log = logging.getLogger(__name__)

WAKING_KINDS: Final = (Kind.POD, Kind.CLUSTER)
PERIOD_S: Final = 1.0
"""Nodes, budgets and headroom move all the time, so whoever waits is looked at once a second."""
MIN_GAP_S: Final = 0.25
MAX_CONCURRENT_PATCHES: Final = 16
RECHECK_S: Final = 2.0
"""A patch of unknown outcome is looked at afresh after this pause."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One cluster as admission sees it. `floor_w`: meter watts of the floors of all pods past their gates."""

    verdict: Verdict
    admitted: Mapping[Role, int]
    floor_w: float


@dataclass(slots=True)
class _Lift:
    """A patch that counts as done, and when it was last sent (event loop time)."""

    admission: Admission
    sent_s: float = float("-inf")


class Admitter:
    """`run` until cancelled. `standings` by namespace and cluster label; `changed` is called for each that changed."""

    def __init__(
        self,
        *,
        store: Store,
        reader: Reader,
        pen: Pen,
        surveyor: Surveyor,
        recorder: Recorder,
        changed: Callable[[Name], None],
    ) -> None:
        self._store = store
        self._reader = reader
        self._pen = pen
        self._surveyor = surveyor
        self._recorder = recorder
        self._changed = changed
        self._assumed: dict[str, _Lift] = {}
        self.standings: dict[Name, Standing] = {}

    async def run(self) -> None:
        changes = self._store.subscribe(WAKING_KINDS)
        try:
            while True:
                changes.wake.clear()
                changes.take()
                waiting = await self.step()
                await asyncio.sleep(MIN_GAP_S)
                await woken(changes.wake, within_s=PERIOD_S - MIN_GAP_S if waiting else None)
        finally:
            self._store.unsubscribe(changes)

    async def step(self) -> bool:
        """Plan once and perform it. True while some pod waits behind its gate."""
        self._settle()
        snapshot = self._surveyor.snapshot({uid: lift.admission.leaf for uid, lift in self._assumed.items()})
        # In a thread: with thousands of nodes it takes long enough to make the budget loop late.
        plan = await asyncio.to_thread(plan_admission, snapshot)
        for admission in plan.admissions:
            self._assumed[admission.need.uid] = _Lift(admission)
        self._show(snapshot, plan.admissions, plan.verdicts)
        now_s = asyncio.get_running_loop().time()
        due = [lift for lift in self._assumed.values() if now_s - lift.sent_s >= RECHECK_S]
        slots = asyncio.Semaphore(MAX_CONCURRENT_PATCHES)
        await asyncio.gather(*(self._lift(lift, slots) for lift in due))
        return bool(snapshot.waiting or self._assumed)

    def _settle(self) -> None:
        """Forget assumptions that the store has caught up with."""
        pods = {pod["metadata"]["uid"]: pod for pod in self._store.all(Kind.POD)}
        for uid in [uid for uid in self._assumed if uid not in pods or not gated(pods[uid])]:
            del self._assumed[uid]

    async def _lift(self, lift: _Lift, slots: asyncio.Semaphore) -> None:
        """Send one patch. After an unknown outcome the same one is sent again, and never another in its place."""
        need = lift.admission.need
        async with slots:
            pod = self._store.get(Kind.POD, need.pod.name, need.pod.namespace)
            if pod is None or pod["metadata"]["uid"] != need.uid or not gated(pod):
                return  # gone, or done already: the next look settles it
            await self._patch(pod, lift)

    async def _patch(self, pod: JsonObject, lift: _Lift) -> None:
        """After an unknown outcome the store holds a fresh read of the pod, where possible."""
        admission, need = lift.admission, lift.admission.need
        patch = gate_patch(pod, leaf=admission.leaf, selector=admission.selector)
        sent_s = asyncio.get_running_loop().time()
        match await self._pen.patch(PODS, need.pod.name, patch, namespace=need.pod.namespace):
            case Stored(answer):
                lift.sent_s = sent_s
                self._store.apply(Kind.POD, answer)
                log.info(
                    "gate lifted",
                    extra={"pod": str(need.pod), "budget": admission.leaf, "reserve_w": round(admission.reserve_w)},
                )
            case NotSent():
                pass  # the same one is due again, or the reign is about to end and its assumptions with it
            case Rejected() as refusal:
                # Nothing was stored: the watts are free again, and the next look decides on a fresh version.
                self._assumed.pop(need.uid, None)
                log.info("gate not lifted: %s", refusal, extra={"pod": str(need.pod)})
            case OutcomeUnknown() as error:
                lift.sent_s = sent_s
                log.warning("gate lifted perhaps: %s", error, extra={"pod": str(need.pod)})
                await self._reread(need.pod)

    async def _reread(self, name: Name) -> None:
        try:
            pod = await self._reader.get(PODS, name.name, namespace=name.namespace)
        except ApiError as error:
            log.warning("pod not read: %s", error, extra={"pod": str(name)})
            return
        if pod is not None:
            self._store.apply(Kind.POD, pod)

    def _show(self, snapshot: AdmissionSnapshot, admissions: Sequence[Admission], verdicts: Mapping[Name, Verdict]) -> None:
        floors = _floors_w(snapshot, admissions)
        admitted: dict[Name, dict[Role, int]] = {}
        staying = [h.need for h in snapshot.held if not h.terminating]
        for need in (*staying, *(a.need for a in admissions)):
            counts = admitted.setdefault(need.cluster, {})
            counts[need.role] = counts.get(need.role, 0) + 1
        for name in [name for name in self.standings if name not in verdicts]:
            del self.standings[name]
        for name, verdict in verdicts.items():
            standing = Standing(verdict, admitted.get(name, {}), floors.get(name, 0.0))
            if self.standings.get(name) != standing:
                self.standings[name] = standing
                self._changed(name)
        for name in sorted({a.need.cluster for a in admissions}):
            self._tell(name, [a for a in admissions if a.need.cluster == name])

    def _tell(self, cluster: Name, admissions: Sequence[Admission]) -> None:
        spec = self._surveyor.clusters().get(cluster)
        obj = None if spec is None else self._store.get(Kind.CLUSTER, spec.name, spec.namespace)
        if obj is None:
            return
        parts = [f"{a.need.pod.name} in {a.leaf} ({a.reserve_w:.0f} W)" for a in admissions]
        self._recorder.note(subject_of(obj), reason="PowerReserved", message=f"Floors reserved: {', '.join(parts)}.")


def _floors_w(snapshot: AdmissionSnapshot, admissions: Sequence[Admission]) -> dict[Name, float]:
    """Meter watts of all floors by cluster: on a pod's own node once it is bound, else on the dearest it may get."""
    nodes = {node.name: node for node in snapshot.nodes}
    by_leaf: dict[str, float] = {node.leaf: node.loss_factor for node in snapshot.nodes}
    total: dict[Name, float] = {}
    placed = [(h.need, nodes.get(h.node or ""), h.leaf) for h in snapshot.held]
    placed += [(a.need, None, a.leaf) for a in admissions]
    for need, node, leaf in placed:
        dearest_w = max(need.floor_w.values(), default=0.0)
        floor_w = dearest_w if node is None else need.floor_w.get(node.gpu_kind, dearest_w)
        loss = node.loss_factor if node is not None else by_leaf.get(leaf or "", 1.0)
        total[need.cluster] = total.get(need.cluster, 0.0) + floor_w * need.gpus * loss
    return total


def gate_patch(pod: JsonObject, *, leaf: str, selector: Selector) -> list[dict[str, Any]]:
    """The JSON patch that lets a pod go into a leaf: bound to its uid and version, gate out, affinity in, leaf noted.

    Kubernetes lets a gated pod's node affinity only be narrowed: the leaf's requirements go into each term that is there.
    """
    meta, spec = pod["metadata"], pod["spec"]
    gates = [gate for gate in spec["schedulingGates"] if gate["name"] != GATE_POWER]
    affinity = dict(spec.get("affinity") or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": [
            {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *_requirements(selector)]}
            for term in (required_terms(pod) or [{}])
        ]
    }
    affinity["nodeAffinity"] = node_affinity
    annotations = {**(meta.get("annotations") or {}), ANNOTATION_BUDGET: leaf}
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
        {"op": "replace", "path": "/spec/schedulingGates", "value": gates}
        if gates
        else {"op": "remove", "path": "/spec/schedulingGates"},
        {"op": "add", "path": "/metadata/annotations", "value": annotations},
    ]
    if _requirements(selector):  # an empty selector is every node: nothing to narrow
        patch.append({"op": "add", "path": "/spec/affinity", "value": affinity})
    return patch


def _requirements(selector: Selector) -> list[dict[str, Any]]:
    """A label selector as node affinity expressions, which know the same operators."""
    rows: list[dict[str, Any]] = [
        {"key": key, "operator": "In", "values": [value]} for key, value in sorted(selector.match_labels.items())
    ]
    for requirement in selector.match_expressions:
        row: dict[str, Any] = {"key": requirement.key, "operator": requirement.operator}
        if requirement.values:
            row["values"] = list(requirement.values)
        rows.append(row)
    return rows
