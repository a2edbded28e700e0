"""The serving loop: every InferenceCluster becomes its objects and stays so, and its status says how it stands.

A change of a cluster, of an object it owns or of its admission puts the cluster into a work queue; a few workers render
it, bring the objects to what was rendered, and write the status. One bad cluster waits for its next try while the others
go on. Power admission runs beside it, and so do the look at latencies and the proof that KV caches move.

Protected: without the Lease nothing is sent and nothing forgotten, it waits for the next look; and deletion needs nobody:
what a cluster owns goes by garbage collection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Reader
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.clusters import ClusterName, ClusterSpec, Role
from splitwatt_core.names import LABEL_CLUSTER
from splitwatt_core.rendering.llmd import POOL_KIND
from splitwatt_core.rendering.objects import PARTS, ROUTER_PART, object_name
from splitwatt_core.rendering.render import RenderContext, pod_templates, render, unjudged
from splitwatt_core.serving.rollout import RolloutPlan
from splitwatt_shell.supervise import first_to_end

from splitwatt_operator.cluster.read import subject_of
from splitwatt_operator.cluster.store import Change, JsonObject, Kind, Store
from splitwatt_operator.cluster.view import Seen, View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import NotSent, Pen, Stored
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving.admission import Admitter
from splitwatt_operator.serving.apply import OWNED_KINDS, Applier
from splitwatt_operator.serving.energy import EnergyMeter
from splitwatt_operator.serving.groups import Groups, without_groups
from splitwatt_operator.serving.pools import PoolReport, Pools
from splitwatt_operator.serving.prober import Prober
from splitwatt_operator.serving.queue import WorkQueue
from splitwatt_operator.serving.revisions import PlacesSeen, revisions_of, together
from splitwatt_operator.serving.role_scales import RoleScales
from splitwatt_operator.serving.scalers import Scalers
from splitwatt_operator.serving.slo import Latency, SloMeter
from splitwatt_operator.serving.status import invalid_status, manifest_of, status_of, waits_s
from splitwatt_operator.telemetry.prometheus import PrometheusClient

log = logging.getLogger(__name__)

WORKERS: Final = 4
RECHECK_S: Final = 300.0
"""Every cluster is looked at this often even when nothing is heard of it."""
ROLLING_S: Final = 5.0
"""And this often while it rolls out: no Deployment tells when a pod comes to wait for power."""
LEASE_PAUSE_S: Final = 1.0
"""Before the next look when something was not sent for want of the Lease."""

REASONS_WORTH_AN_EVENT: Final = (
    "InsufficientPower", "InsufficientGPUs", "NoMatchingNodes", "UntoleratedTaint", "NodesUnavailable", "InvalidTree",
    "WaitingForTurn",
)  # fmt: skip


async def run(
    store: Store,
    view: View,
    reader: Reader,
    pen: Pen,
    keeper: Keeper,
    *,
    recorder: Recorder,
    prometheus: PrometheusClient | None = None,
    context: RenderContext,
    metrics: Metrics,
) -> None:
    """Serve until cancelled. Without `prometheus` latencies stay unknown."""
    serving = Serving(
        store, view, reader, pen, keeper, recorder=recorder, prometheus=prometheus, context=context, metrics=metrics
    )
    await serving.run()


class Serving:
    """See the module's docstring. One per reign."""

    def __init__(
        self,
        store: Store,
        view: View,
        reader: Reader,
        pen: Pen,
        keeper: Keeper,
        *,
        recorder: Recorder,
        prometheus: PrometheusClient | None,
        context: RenderContext,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._view = view
        self._pen = pen
        self._recorder = recorder
        self._context = context
        self._metrics = metrics
        self._queue: WorkQueue[ClusterName] = WorkQueue()
        self._applier = Applier(reader, pen, store)
        self._pools = Pools(reader, pen)
        self._groups = Groups(reader, store)
        self._scalers = Scalers(reader)
        self._places = PlacesSeen()
        self._role_scales = RoleScales(pen, store)
        self._slo = SloMeter(prometheus, lambda: view.owners, self._queue.add)
        self._energy = EnergyMeter(prometheus, view, metrics)
        self._prober = Prober(store, view, self._queue.add)
        self._admitter = Admitter(
            store=store, view=view, keeper=keeper, reader=reader, pen=pen, recorder=recorder, changed=self._queue.add,
        )  # fmt: skip
        self._owner: dict[Change, ClusterName] = {}
        """Whose each owned object is: known even when it is deleted, or somebody took its labels."""
        self._asked: dict[ClusterName, tuple[object, ...]] = {}
        """What each cluster asked for when it was put into the queue last: its own status is no reason to look again."""
        self._written: dict[ClusterName, tuple[str, Mapping[str, Any], float]] = {}
        """The cluster's uid, the status written last, and when (monotonic)."""

    async def run(self) -> None:
        workers = {f"worker{i}": self._work() for i in range(WORKERS)}
        try:
            await first_to_end(
                pump=self._pump(), admission=self._admitter.run(), slo=self._slo.run(), energy=self._energy.run(),
                prober=self._prober.run(), **workers,
            )  # fmt: skip
        finally:
            self._queue.close()

    # ------------------------------------------------------------------------------------------------------- who is due

    async def _pump(self) -> None:
        changes = self._store.subscribe((Kind.CLUSTER, Kind.ROLE_SCALE, *OWNED_KINDS))
        try:
            while True:
                await changes.wake.wait()
                changes.wake.clear()
                for change in changes.take():
                    for name in self._clusters_of(change):
                        self._queue.add(name)
        finally:
            self._store.unsubscribe(changes)

    def _clusters_of(self, change: Change) -> Collection[ClusterName]:
        """Who has to look because of it. Of an object whose label now names another cluster, both: the former put it there."""
        kind, key = change
        obj = self._store.get(kind, key.name, key.namespace)
        if kind is Kind.CLUSTER:
            name, meta = ClusterName(key.namespace, key.name), {} if obj is None else obj["metadata"]
            asked = (meta.get("uid"), meta.get("generation"), meta.get("deletionTimestamp"))
            if self._asked.get(name) == asked:
                return ()
            self._asked[name] = asked
            return (name,)
        if kind is Kind.ROLE_SCALE:
            of = self._view.cluster_of_scale(key)
            return () if of is None else (of,)
        before = self._owner.get(change)
        owner = None
        if obj is None:
            self._owner.pop(change, None)
        else:
            owner = self._view.owners.of(key.namespace, obj["metadata"].get("labels", {}).get(LABEL_CLUSTER, ""))
        if owner is not None:
            self._owner[change] = owner
        return {name for name in (before, owner) if name is not None}

    async def _work(self) -> None:
        while True:
            name = await self._queue.get()
            try:
                again_s = await self._reconcile(name)
            except asyncio.CancelledError:
                raise
            except ApiError as error:
                pause_s = self._queue.failed(name)
                log.warning("again in %.1f s: %s", pause_s, error, extra={"cluster": str(name)})
            except Exception:  # one cluster that meets a bug must not stop the others, nor the budgets
                pause_s = self._queue.failed(name)
                log.exception("reconciling failed, again in %.1f s", pause_s, extra={"cluster": str(name)})
            else:
                self._queue.done(name)
                if again_s is not None:
                    self._queue.add_after(name, again_s)

    # ------------------------------------------------------------------------------------------------------- reconciling

    async def _reconcile(self, name: ClusterName) -> float | None:
        """Bring one cluster to what it asks for; returns when to look again, None when there is no such cluster."""
        obj = self._store.get(Kind.CLUSTER, name.name, name.namespace)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            self._forget(name)
            return None
        seen, refusal = self._view.cluster(name), self._view.owners.refusal(name)
        assert seen is not None, "the view holds whatever the store holds"
        if refusal is not None or seen.problem:
            self._recorder.note(subject_of(obj), reason="InvalidSpec", message=refusal or seen.sentence, warning=True)
        if refusal is not None or seen.fact is None:
            status = invalid_status(obj, refusal or seen.sentence, time.time())
            self._metrics.show_cluster(name, None, status)
            return _sooner(RECHECK_S, await self._show(obj, status))
        spec = seen.fact
        no_groups = await self._groups.read(spec)
        rollout = revisions_of(self._store, spec, pod_templates(spec, self._context), self._places)
        manifests = render(spec, self._context, rollout.rendered)
        ordinary, keep, tell = [m for m in manifests if m["kind"] != POOL_KIND], rollout.keep, rollout.tell
        if no_groups:
            ordinary, keep, tell = *without_groups(ordinary, keep), {}  # nobody makes room for what cannot come
        outcome = await self._applier.bring(spec.uid, ordinary, keep=keep, tell=tell)
        pool = PoolReport(unsent=True)
        if not outcome.unsent:
            pool = await self._pools.bring(spec, next((m for m in manifests if m["kind"] == POOL_KIND), None))
        if pool.repaired:
            outcome.repaired.append(f"{POOL_KIND} {object_name(name.name)}")
        for what in outcome.repaired:
            self._recorder.note(
                subject_of(obj), reason="DriftRepaired", message=f"{what} was changed by someone else and put right."
            )
        if pool.unsent:
            return LEASE_PAUSE_S
        declared = self._view.declared_replicas(name)
        scale_due_s = None if declared is None else await self._role_scales.keep(spec, declared)
        scaled = await self._scalers.look(spec, outcome.repaired, rollout.named)
        for sentence in scaled:
            self._recorder.note(subject_of(obj), reason="ScaledElsewhere", message=sentence, warning=True)
        for problem in (*outcome.problems, *(sentence for sentence in (pool.problem, no_groups) if sentence)):
            self._recorder.note(subject_of(obj), reason="ObjectNotApplied", message=problem, warning=True)
        status = self._status(
            obj, seen, spec, problems=outcome.problems, pool_problem=pool.problem, no_groups=no_groups, scaled=scaled,
            rollout=rollout.plan,
        )  # fmt: skip
        self._metrics.show_cluster(name, spec, status)
        due_s = await self._show(obj, status)
        if outcome.failed:
            raise ApiError(" ".join(outcome.problems))
        groups_s = self._groups.again_s(spec, no_groups)
        rolling_s = ROLLING_S if rollout.plan.sentence else None
        waits_s = (outcome.retry_s, pool.again_s, groups_s, due_s, scale_due_s, rolling_s, self._scalers.again_s(name))
        return _sooner(RECHECK_S, *waits_s)

    def _status(
        self,
        obj: JsonObject,
        seen: Seen[ClusterSpec],
        spec: ClusterSpec,
        *,
        problems: list[str],
        pool_problem: str,
        no_groups: str,
        scaled: Sequence[str],
        rollout: RolloutPlan,
    ) -> dict[str, Any]:
        standing = self._admitter.standings.get(spec.id)
        if standing is not None and standing.verdict.reason in REASONS_WORTH_AN_EVENT:
            self._recorder.note(subject_of(obj), reason=standing.verdict.reason, message=standing.verdict.message, warning=True)
        now = revisions_of(self._store, spec, pod_templates(spec, self._context))
        parts = {part: together(now.of(part), now.newest) for part in (*Role, ROUTER_PART)}
        return status_of(
            spec,
            {role: parts[role] for role in Role},
            parts[ROUTER_PART],
            rollout=rollout,
            standing=standing,
            latency=self._slo.latencies.get(spec.id, Latency()),
            proof=self._prober.condition(spec, obj.get("status") or {}),
            problems=problems,
            pool_problem=pool_problem,
            no_groups=no_groups,
            scaled=scaled,
            unjudged=unjudged(spec, self._context),
            invalid=seen.sentence,
            generation=seen.generation,
            previous=obj.get("status") or {},
            now_s=time.time(),
        )

    async def _show(self, obj: JsonObject, status: dict[str, Any]) -> float | None:
        """Write the status if it is worth it. Returns when it will be, None when it is as it should be."""
        name, uid = ClusterName(obj["metadata"]["namespace"], obj["metadata"]["name"]), obj["metadata"]["uid"]
        of, old, written_s = self._written.get(name, ("", {}, 0.0))
        if of != uid:
            old, written_s = obj.get("status") or {}, float("-inf")
        due_s = waits_s(old, status) - (time.monotonic() - written_s)
        if due_s > 0:
            return None if due_s == float("inf") else due_s
        match await self._pen.apply(manifest_of(obj, status), subresource="status"):
            case Stored(answer):
                self._written[name] = (uid, status, time.monotonic())
                self._store.apply(Kind.CLUSTER, answer)
            case NotSent():
                return LEASE_PAUSE_S
            case Rejected(not_found=True) | Rejected(conflict=True):
                pass  # deleted meanwhile, or made anew: the watch brings the news
            case Rejected() as refusal:
                raise refusal
            case OutcomeUnknown() as error:
                self._written[name] = (uid, {}, float("-inf"))  # what stands is not known: the next one is news in any case
                raise error
        return None

    def _forget(self, name: ClusterName) -> None:
        self._applier.forget(name.namespace, [object_name(name.name, part) for part in PARTS])
        self._pools.forget(name)
        self._groups.forget(name)
        self._scalers.forget(name)
        self._places.forget(name)
        self._queue.forget(name)
        self._metrics.forget_cluster(name)
        self._written.pop(name, None)
        self._asked.pop(name, None)


def _sooner(*pauses_s: float | None) -> float:
    """The shortest; None is none."""
    return min(pause_s for pause_s in pauses_s if pause_s is not None)
