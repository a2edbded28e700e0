"""Performs power admission: looks about once a second while anyone waits, and lifts gates as the plan says.

One patch per pod takes our gate out, narrows the node affinity to the leaf and notes the leaf as an annotation, which is
the reservation: a restarted operator reads it back. The patch is bound to the version the decision was made on, and
Kubernetes takes it only while the pod is gated. Survey, decide, assume, apply: what counts as done before the watch shows
it is the core's to say (`admission.assumed`), so that no watt is promised twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import PODS
from splitwatt_core.admission import foreign
from splitwatt_core.admission.assumed import Assumed
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.scheduling import NODE_NAME_FIELD
from splitwatt_core.admission.site import Site, snapshot_of
from splitwatt_core.admission.snapshot import Admission, AdmissionPlan, AdmissionSnapshot
from splitwatt_core.admission.standing import ClusterStanding, standings
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import ClusterName
from splitwatt_core.names import ANNOTATION_BUDGET, GATE_POWER
from splitwatt_shell.waiting import woken

from splitwatt_operator.cluster.read import required_terms, subject_of
from splitwatt_operator.cluster.store import JsonObject, Kind, Store, version_of
from splitwatt_operator.cluster.view import View
from splitwatt_operator.pen import NotSent, Pen, Stored
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving.askers import Askers
from splitwatt_operator.serving.site import site_of

log = logging.getLogger(__name__)

WAKING_KINDS: Final = (Kind.POD, Kind.CLUSTER, Kind.ROLE_SCALE)
PERIOD_S: Final = 1.0
"""Nodes, budgets and floor room move all the time, so whoever waits is looked at once a second."""
MIN_GAP_S: Final = 0.25
MAX_CONCURRENT_PATCHES: Final = 16
WISH_WEIGHT: Final = 100
"""Of the node that the plan counts on, among a pod's preferences: the most that Kubernetes takes."""


class Admitter:
    """`run` until cancelled. `changed` is called for each cluster whose standing changed."""

    def __init__(
        self,
        *,
        store: Store,
        view: View,
        keeper: Keeper,
        reader: Reader,
        pen: Pen,
        recorder: Recorder,
        changed: Callable[[ClusterName], None],
    ) -> None:
        self._store = store
        self._view = view
        self._keeper = keeper
        self._reader = reader
        self._pen = pen
        self._recorder = recorder
        self._changed = changed
        self._askers = Askers(store, recorder)
        self._assumed = Assumed()
        self.standings: Mapping[ClusterName, ClusterStanding] = {}

    async def run(self) -> None:
        changes = self._store.subscribe(WAKING_KINDS)
        try:
            while True:
                changes.wake.clear()
                changes.take()
                try:
                    waiting = await self.step()
                except Exception:  # whoever waits stays behind the gate, and the budgets are ruled all the same
                    log.exception("no pod was let in: again in %.0f s", PERIOD_S)
                    waiting = True
                await asyncio.sleep(MIN_GAP_S)
                await woken(changes.wake, within_s=PERIOD_S - MIN_GAP_S if waiting else None)
        finally:
            self._store.unsubscribe(changes)

    async def step(self) -> bool:
        """Plan once and perform it. True while some pod waits behind its gate."""
        self._assumed.settle(self._view.pods.facts.values())
        site = site_of(self._view, self._keeper, self._assumed.leaves())
        # In a thread: with thousands of nodes it takes long enough to make the budget loop late.
        snapshot, plan, now = await asyncio.to_thread(_decide, site, time.time())
        self._assumed.take(plan.admissions)
        self._show(plan.admissions, now)
        slots = asyncio.Semaphore(MAX_CONCURRENT_PATCHES)
        due = self._assumed.due(asyncio.get_running_loop().time())
        await asyncio.gather(*(self._lift(admission, slots) for admission in due))
        return bool(snapshot.waiting or snapshot.refused or self._assumed)

    async def _lift(self, admission: Admission, slots: asyncio.Semaphore) -> None:
        """Send one patch, unless the pod is done or gone, which the next look settles."""
        need = admission.need
        async with slots:
            pod = self._store.get(Kind.POD, need.pod.name, need.pod.namespace)
            seen = self._view.pods.get(need.pod.name, need.pod.namespace)
            if pod is None or seen is None or seen.uid != need.uid or seen.fact is None or not seen.fact.gated:
                return
            await self._patch(pod, admission)

    async def _patch(self, pod: JsonObject, admission: Admission) -> None:
        """After an unknown outcome the store holds a fresh read of the pod, where possible."""
        need = admission.need
        patch = gate_patch(pod, leaf=admission.leaf, selector=admission.selector, node=admission.node)
        sent_s = asyncio.get_running_loop().time()
        outcome = await self._pen.patch(PODS, need.pod.name, patch, namespace=need.pod.namespace)
        if isinstance(outcome, NotSent):
            self._assumed.unsent(need.uid)
            return
        self._assumed.sent(need.uid, version=version_of(pod), now_s=sent_s)
        match outcome:
            case Stored(answer):
                self._store.apply(Kind.POD, answer)
                log.info(
                    "gate lifted",
                    extra={"pod": str(need.pod), "budget": admission.leaf, "reservation_w": round(admission.reservation_w)},
                )
            case Rejected() as refusal:
                log.info("gate not lifted: %s", refusal, extra={"pod": str(need.pod)})
                if not self._assumed.refused(need.uid):
                    await self._reread(need.pod)
            case OutcomeUnknown() as error:
                log.warning("gate lifted perhaps: %s", error, extra={"pod": str(need.pod)})
                self._assumed.unknown(need.uid)
                await self._reread(need.pod)

    async def _reread(self, name: PodName) -> None:
        try:
            pod = await self._reader.get(PODS, name.name, namespace=name.namespace)
        except ApiError as error:
            log.warning("pod not read: %s", error, extra={"pod": str(name)})
            return
        if pod is not None:
            self._store.apply(Kind.POD, pod)

    def _show(self, admissions: Sequence[Admission], now: Mapping[ClusterName, ClusterStanding]) -> None:
        changed = [name for name, standing in now.items() if self.standings.get(name) != standing]
        self.standings = now
        for name in changed:
            if foreign.pod_of(name) is None:
                self._changed(name)
        self._askers.tell(now, asyncio.get_running_loop().time())
        for name in sorted({a.need.cluster for a in admissions if a.need.cluster is not None}):
            self._tell(name, [a for a in admissions if a.need.cluster == name])

    def _tell(self, cluster: ClusterName, admissions: Sequence[Admission]) -> None:
        pod = foreign.pod_of(cluster)
        if pod is None:
            obj = self._store.get(Kind.CLUSTER, cluster.name, cluster.namespace)
        else:
            obj = self._store.get(Kind.POD, pod.name, pod.namespace)
        if obj is None:
            return
        parts = [f"{a.need.pod.name} in {a.leaf} ({a.reservation_w:.0f} W)" for a in admissions]
        self._recorder.note(subject_of(obj), reason="PowerReserved", message=f"Floors reserved: {', '.join(parts)}.")


def _decide(site: Site, now_s: float) -> tuple[AdmissionSnapshot, AdmissionPlan, dict[ClusterName, ClusterStanding]]:
    snapshot = snapshot_of(site)
    plan = plan_admission(snapshot, now_s=now_s)
    return snapshot, plan, standings(snapshot, plan)


def gate_patch(pod: JsonObject, *, leaf: str, selector: Selector, node: str = "") -> list[dict[str, Any]]:
    """The JSON patch that lets a pod go into a leaf: bound to its uid and version, gate out, affinity in, leaf noted.

    Kubernetes lets a gated pod's required node affinity only be narrowed: the leaf's requirements go into each term that is
    there. Preferences may be added freely: `node`, on which the plan counts, is one, so that the scheduler keeps free what the
    plan keeps free. It may still choose another node of the leaf.
    """
    meta, spec = pod["metadata"], pod["spec"]
    gates = [gate for gate in spec["schedulingGates"] if gate["name"] != GATE_POWER]
    affinity = dict(spec.get("affinity") or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    if narrowing := _requirements(selector):  # an empty selector is every node: nothing to narrow
        node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [
                {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *narrowing]} if term else term
                for term in required_terms(pod)
            ]
            or [{"matchExpressions": narrowing}]
        }
    if node:
        wish = {"key": NODE_NAME_FIELD, "operator": "In", "values": [node]}
        node_affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [
            *(node_affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()),
            {"weight": WISH_WEIGHT, "preference": {"matchFields": [wish]}},
        ]
    affinity["nodeAffinity"] = node_affinity
    # One key alone: annotations that the store leaves out are the pod's all the same, and it keeps them.
    noted: dict[str, Any] = (
        {"op": "add", "path": f"/metadata/annotations/{ANNOTATION_BUDGET.replace('/', '~1')}", "value": leaf}
        if "annotations" in meta
        else {"op": "add", "path": "/metadata/annotations", "value": {ANNOTATION_BUDGET: leaf}}
    )
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
        {"op": "replace", "path": "/spec/schedulingGates", "value": gates}
        if gates
        else {"op": "remove", "path": "/spec/schedulingGates"},
        noted,
    ]
    if narrowing or node:
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
