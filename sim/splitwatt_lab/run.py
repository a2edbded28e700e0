"""One pass of the demo: a site, its load, five things that happen to it, and a judge who writes everything down."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from splitwatt_core.names import L_CLUSTER, L_NAMESPACE, L_ROLE, M_CLUSTER_JOULES_PER_TOKEN

from splitwatt_lab import scenario
from splitwatt_lab.errors import LabError
from splitwatt_lab.judge import BudgetLook, Count, Judge, complaints
from splitwatt_lab.site import LabSite, SiteSpec
from splitwatt_lab.toolbuild import Progress, silent

API: Final = "/apis/splitwatt.io/v1alpha1"
ADOPTION_S: Final = 60.0
READY_S: Final = 120.0
LATE_S: Final = 60.0
"""On a busy machine pods come late: so long a pass goes on after its end until each cluster has served a request."""
ENFORCED_LOOK_S: Final = 0.02
ENFORCED_WINDOW_S: Final = 6.0
"""Longer than the grace of a lowered limit: a cap that fell later than this was late anyway."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that was done to the site, in seconds after the load began."""

    at_s: float
    what: str


@dataclass(slots=True)
class PassResult:
    """Everything one pass measured. Times are Unix seconds unless named otherwise."""

    policy: str
    started_s: float
    ended_s: float
    counts: dict[str, Count]
    samples: list[BudgetLook]
    decisions: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    caps_by_role: dict[str, list[tuple[float, float]]]
    happenings: list[Happening]
    events: list[dict[str, Any]]
    adoption_s: dict[str, float]
    patch_to_enforced_s: float | None
    energy_j: float
    gpus: int
    joules_per_token: dict[str, float] = field(default_factory=dict)
    """By "namespace/cluster role", as the operator showed it: the mean over the pass."""
    kubectl_view: str = ""
    violations_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    """Why this pass proves nothing, whatever was counted: a sentence each."""
    slos: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By namespace/name of a cluster, the P99 that it promises in ms, of "ttft_ms" and "tbt_ms"."""


class Watcher(threading.Thread):
    """Looks at enforced limits 50 times a second and remembers when any of them last fell."""

    def __init__(self, site: LabSite, nodes: list[str]) -> None:
        super().__init__(daemon=True)
        self._twins = [site.twins[node] for node in nodes]
        self.last_fall_s: float | None = None

    def run(self) -> None:
        end_s = time.time() + ENFORCED_WINDOW_S
        before = self._read()
        while time.time() < end_s:
            time.sleep(ENFORCED_LOOK_S)
            now = self._read()
            if any(a < b for a, b in zip(now, before, strict=True)):
                self.last_fall_s = time.time()
            before = now

    def _read(self) -> list[int]:
        return [gpu.enforced_mw for twin in self._twins for gpu in twin.read_all()]


@dataclass(slots=True)
class Live:
    """What a view may show while the pass runs. `clock_s` is seconds since the load began, None before."""

    site: LabSite
    judge: Judge
    policy: str
    timeline: scenario.Timeline
    clock_s: float | None = None
    happenings: list[Happening] = field(default_factory=list)
    stage: str = ""


View = Callable[[Live], None]
"""Called about twice a second from the pass's own thread; must return quickly."""


def run_pass(
    spec: SiteSpec,
    *,
    policy: str,
    minutes: float,
    directory: Path,
    view: View,
    progress: Progress = silent,
    stage: Callable[[str], None] = lambda _: None,
    serves: Callable[[LabSite], None] = lambda _: None,
) -> PassResult:
    """Play the demo once. `serves`: called when the first request was answered. Raises LabError when a part does not come up;
    violations are counted, not raised."""
    timeline = scenario.Timeline.of(minutes)
    with LabSite(spec, directory, progress=progress, stage=stage) as site:
        judge = Judge(
            twins=site.twins,
            wiring=scenario.wiring(spec),
            plant=spec.plant,
            budgets=lambda: site.get(f"{API}/powerbudgets?resourceVersion=0")["items"],
        )
        live = Live(site, judge, policy, timeline)
        return _Pass(live, view, stage, serves).play()


class _Pass:
    def __init__(self, live: Live, view: View, stage: Callable[[str], None], serves: Callable[[LabSite], None]) -> None:
        self.live, self.view, self.stage, self.serves = live, view, stage, serves
        self.site, self.judge = live.site, live.judge
        self.patch_s: float | None = None
        self.watcher: Watcher | None = None
        self.begun_s = 0.0
        self.limits_w: dict[str, int] = {}
        """As they were last seen."""
        self.own_w: dict[str, int] = {}
        """What the demo itself set one to."""

    def play(self) -> PassResult:
        site, spec = self.site, self.site.spec
        chat, batch = scenario.clusters(spec)
        self.stage("budgets: adopting every GPU")
        site.kubectl("apply", "-f", "-", stdin=scenario.to_yaml(scenario.budgets(spec, self.live.policy)))
        self.judge.start()
        site.await_("adoption of all budgets", self._adopted, timeout_s=ADOPTION_S)
        self.stage("InferenceCluster: pods")
        site.kubectl("apply", "-f", "-", stdin=scenario.to_yaml([*scenario.namespaces([chat, batch]), chat]))
        site.await_("the first request", self._serving, timeout_s=READY_S)
        self.begun_s = time.time()
        self.serves(site)
        self._play_timeline(batch)
        return self._close()

    # -------------------------------------------------------------------------------------------------------- timeline

    def _play_timeline(self, batch: scenario.Manifest) -> None:
        t = self.live.timeline
        victim = self.site.node_specs[-1].name
        script: list[tuple[float, Callable[[], None]]] = [
            (t.rise_s, lambda: self._note("load begins to rise to three times its rate")),
            (t.cut_s, self._cut),
            (t.second_cluster_s, lambda: self._second(batch)),
            (t.kill_s, lambda: self._kill(victim)),
            (t.kill_s + scenario.AGENT_DOWN_S, lambda: self._revive(victim)),
        ]
        while (clock_s := time.time() - self.begun_s) < t.end_s + LATE_S:
            if clock_s >= t.end_s and not script and not self._unserved():
                break
            self.live.clock_s = clock_s
            self._told_by_others()
            while script and script[0][0] <= clock_s:
                script.pop(0)[1]()
            self._require_running()
            self.view(self.live)
            time.sleep(0.5)

    def _require_running(self) -> None:
        self.judge.check()
        for process in (self.site.operator, self.site.load):
            if process is not None and not process.running:
                raise LabError(f"{process.name} ended with code {process.returncode} (log: {process.log})")

    def _note(self, what: str) -> None:
        self.live.happenings.append(Happening(time.time() - self.begun_s, what))

    def _told_by_others(self) -> None:
        """What a person changed meanwhile stands among the happenings: it is judged like the demo's own."""
        there = self.judge.there
        now_w = {name: view.limit_w for name, view in self.judge.views.items() if name in there}
        for name in sorted(now_w.keys() | self.limits_w.keys()):
            before_w, limit_w = self.limits_w.get(name), now_w.get(name)
            if before_w == limit_w or not self.limits_w or (name in self.own_w and limit_w == self.own_w.pop(name)):
                continue
            if limit_w is None:
                self._note(f"{name}: deleted by somebody; its nodes count on, and its last limit is judged")
            elif before_w is None:
                self._note(f"{name}: there again")
            else:
                self._note(f"{name}: limit set from {before_w} W to {limit_w} W by somebody")
        self.limits_w = now_w

    def _cut(self) -> None:
        """Of the rack that serves most, where the cut is felt most; the other one keeps room for who comes. What somebody set
        lower, or took away, is left alone."""
        pods = self.site.get("/api/v1/pods")["items"]
        rack = scenario.busiest_rack(self.site.spec, [pod["spec"].get("nodeName", "") for pod in pods])
        name = f"rack-{rack}"
        if name not in self.judge.there:
            self._note(f"{name}: is gone, so nothing is cut")
            return
        before_w = self.judge.views[name].limit_w
        after_w = round(scenario.limits_w(self.site.spec)[name] * scenario.CUT_RATIO)
        if before_w <= after_w:
            self._note(f"{name}: stands at {before_w} W already, so nothing is cut")
            return
        nodes = [node.name for node in self.site.node_specs if node.rack == rack]
        self.watcher = Watcher(self.site, nodes)
        self.watcher.start()
        self.own_w[name] = after_w
        patch = json.dumps({"spec": {"limitWatts": after_w}})
        # Counted from before the patch is sent: kubectl's own start is part of what a person waits for.
        self.patch_s = time.time()
        try:
            self.site.kubectl("patch", "pb", name, "--type=merge", "-p", patch)
        except LabError as error:
            # A person may have deleted it a moment ago; the demo is theirs.
            self._note(f"{name}: could not be cut: {error}")
            return
        self._note(f"{name}: limit cut from {before_w} W to {after_w} W")

    def _second(self, batch: scenario.Manifest) -> None:
        name = f"{batch['metadata']['namespace']}/{batch['metadata']['name']}"
        try:
            self.site.kubectl("apply", "-f", "-", stdin=scenario.to_yaml([batch]))
        except LabError as error:
            self._note(f"{name}: could not be applied: {error}")
            return
        self._note(f"a second InferenceCluster arrives: {name}, low priority")

    def _kill(self, node: str) -> None:
        self.site.kill_agent(node)
        self._note(f"the agent of {node} is killed with SIGKILL")

    def _revive(self, node: str) -> None:
        self.site.start_agent(node)
        self._note(f"the agent of {node} runs again")

    # --------------------------------------------------------------------------------------------------------- reading

    def _adopted(self) -> bool:
        self.view(self.live)
        views = self.judge.views
        return len(views) == len(self.judge.wiring.feeds) and all(view.adopted for view in views.values())

    def _serving(self) -> bool:
        self.view(self.live)
        return self.site.results.is_file() and self.site.results.stat().st_size > 0

    def _unserved(self) -> list[str]:
        return unserved_clusters(scenario.clusters(self.site.spec), read_requests(self.site.results), ())

    def _close(self) -> PassResult:
        site, judge = self.site, self.judge
        ended_s = time.time()
        seen = site.kubectl("get", "ic,pb,np", "-A").stdout
        events = site.get("/apis/events.k8s.io/v1/events")["items"]
        clusters = site.get("/apis/splitwatt.io/v1alpha1/inferenceclusters")["items"]
        judge.stop()
        if self.watcher is not None:
            self.watcher.join()
        caps, prices = self._caps_by_role(ended_s), self._joules_per_token(ended_s)
        assert site.load is not None
        site.load.stop()
        decisions = judge.charge_from(site.decision_log)
        fall_s = self.watcher.last_fall_s if self.watcher is not None else None
        requests = read_requests(site.results)
        unserved = unserved_clusters(scenario.clusters(site.spec), requests, clusters)
        return PassResult(
            policy=self.live.policy,
            started_s=self.begun_s,
            ended_s=ended_s,
            counts=judge.counts,
            samples=judge.samples,
            decisions=decisions,
            requests=requests,
            caps_by_role=caps,
            happenings=self.live.happenings,
            events=[_event(e) for e in events if e.get("reportingController", "").startswith("splitwatt")],
            adoption_s={n: v.status["adoptionMilliseconds"] / 1000 for n, v in judge.views.items() if v.adopted},
            patch_to_enforced_s=None if fall_s is None or self.patch_s is None else fall_s - self.patch_s,
            energy_j=judge.energy_j,
            gpus=sum(node.gpus for node in site.node_specs),
            joules_per_token=prices,
            kubectl_view=seen,
            violations_s=judge.violations_s(),
            slos=slos(scenario.clusters(site.spec)),
            problems=[*complaints(judge.counts, list(judge.wiring.feeds), ended_s - self.begun_s), *unserved],
        )

    def _caps_by_role(self, ended_s: float) -> dict[str, list[tuple[float, float]]]:
        """Mean enforced cap in watts by role, once a second, as Prometheus scraped it."""
        answer = self.site.prometheus.query_range(
            "avg by (role) (splitwatt_gpu_enforced_cap_watts)", self.begun_s, ended_s, step_s=1.0
        )
        return {labels.get("role", "?"): rows for labels, rows in answer}

    def _joules_per_token(self, ended_s: float) -> dict[str, float]:
        rows = self.site.prometheus.query_range(M_CLUSTER_JOULES_PER_TOKEN, self.begun_s, ended_s, step_s=5.0)
        return {
            f"{labels[L_NAMESPACE]}/{labels[L_CLUSTER]} {labels[L_ROLE]}": statistics.fmean(value for _, value in points)
            for labels, points in rows
        }


def slos(clusters: Sequence[scenario.Manifest]) -> dict[str, dict[str, int]]:
    """What each promises: {"namespace/name": {"ttft_ms": ms, "tbt_ms": ms}}, without what it does not promise."""
    fields = {"ttft_ms": "ttftP99Milliseconds", "tbt_ms": "tbtP99Milliseconds"}
    promised = {f"{c['metadata']['namespace']}/{c['metadata']['name']}": c["spec"].get("slo", {}) for c in clusters}
    return {name: {ours: slo[theirs] for ours, theirs in fields.items() if theirs in slo} for name, slo in promised.items()}


def read_requests(results: Path) -> list[dict[str, Any]]:
    """The requests that ended so far; a last line that is still being written is none yet."""
    return [json.loads(line) for line in results.read_text().splitlines(keepends=True) if line.endswith("\n")]


def unserved_clusters(
    wanted: Sequence[scenario.Manifest], requests: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]
) -> list[str]:
    """A sentence for each InferenceCluster of the scenario for which no request ended, with what its object says of it."""
    served = {(row["namespace"], row["cluster"]) for row in requests}
    objects = {(obj["metadata"]["namespace"], obj["metadata"]["name"]): obj for obj in there}
    names = [(doc["metadata"]["namespace"], doc["metadata"]["name"]) for doc in wanted]
    return [
        f"{'/'.join(name)} never ran, so the pass shows nothing about it; {_why(objects.get(name))}"
        for name in names
        if name not in served
    ]


def _why(cluster: Mapping[str, Any] | None) -> str:
    """What an InferenceCluster says is false."""
    rows = (cluster or {}).get("status", {}).get("conditions", [])
    said = [f"{row['type']}={row['status']}: {row['message']}" for row in rows if row["status"] != "True"]
    return "; ".join(said) or "no condition of it is false"


def _event(raw: Mapping[str, Any]) -> dict[str, Any]:
    about = raw.get("regarding", {})
    return {
        "time": raw.get("eventTime") or raw.get("deprecatedLastTimestamp") or raw["metadata"]["creationTimestamp"],
        "about": f"{about.get('kind', '')}/{about.get('name', '')}",
        "type": raw.get("type", ""),
        "reason": raw.get("reason", ""),
        "message": raw.get("note", ""),
    }


def count_row(count: Count) -> dict[str, float]:
    """The counters as JSON, units in the names."""
    return {name: (0.0 if value == float("-inf") else round(value, 3)) for name, value in asdict(count).items()}
