"""One cluster, furnished, with Splitwatt's chart installed as the README says: what every scenario begins with."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml
from splitwatt_lab.errors import LabError
from splitwatt_lab.judge import Judge
from splitwatt_lab.wiring import Feed, Wiring

from ground import images
from ground.cluster import Cluster, NotHereError
from ground.furnish import NAMESPACE, Metering
from ground.gpus import install_device_plugin

REPOSITORY: Final = Path(__file__).resolve().parents[2]
README: Final = REPOSITORY / "README.md"
_WRITTEN_CHART: Final = "helm/splitwatt"
CHART: Final = REPOSITORY / _WRITTEN_CHART
INSTALL_S: Final = 180
_BLOCK: Final = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
RELEASE: Final = "splitwatt"
OPERATOR_LEASE: Final = "splitwatt-operator"
OURS: Final = ("operator", "agent")
BUDGET_S: Final = 60.0
_POLL_S: Final = 0.5
"""kubectl is a heavy way to ask."""
_WRITTEN_REGISTRY: Final = re.compile(r"registry\.example(\.com/\w+)?")
_WRITTEN_PROMETHEUS: Final = "http://prometheus.monitoring.svc:9090"


def written(section: str, language: str) -> Sequence[str]:
    """Code blocks of a section of the README, in order. Raises LabError when it has none: the page has changed."""
    text = README.read_text()
    body = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    blocks = [] if body is None else [code for kind, code in _BLOCK.findall(body[1]) if kind == language]
    if not blocks:
        raise LabError(f"README.md has no {language} block under `{section}`; the scenario that types it must follow the page")
    return blocks


def readme_budgets() -> Sequence[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(written("What to type", "yaml")[0]) if each]


def commands_of(block: str) -> Sequence[Sequence[str]]:
    """Its commands as words; a line's end behind a backslash joins."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


class Site:
    """`await_` and `get` look at the cluster; `install` types the README's commands."""

    def __init__(self, cluster: Cluster) -> None:
        """A cluster that has a Prometheus already has all the rest too."""
        self.cluster = cluster
        self._metering: Metering | None = None
        if cluster.prometheus_url is None:
            cluster.load(images.archives(REPOSITORY))
            install_device_plugin(cluster)
            self._metering = Metering(cluster)

    @property
    def metering(self) -> Metering:
        """Raises NotHereError where meters are somebody's own."""
        if self._metering is None:
            raise NotHereError("the meters of this cluster are its owner's: this scenario runs on node and kind alone")
        return self._metering

    def close(self) -> None:
        if self._metering is not None:
            self._metering.close()

    # ------------------------------------------------------------------------------------------------ README

    def install(self, *extra: str, wait: bool = True, release: str = RELEASE, chart: Path = CHART) -> None:
        """Every command under "Install" but the one that builds images: with the registry and the Prometheus of this site, and
        the RuntimeClass that nodes here need. `extra` is added to Helm's; `release` replaces its name, `chart` its chart. Raises
        LabError."""
        for words in (each for block in written("Install", "sh") for each in commands_of(block)):
            here = [release if word == RELEASE else self._here(word, chart) for word in words]
            if here[0] == "helm":
                until = ["--wait", f"--timeout={INSTALL_S}s"] if wait else []
                self.cluster.helm(*here[1:], f"--set=agent.runtimeClassName={self.cluster.runtime_class}", *extra, *until)
            elif here[0] == "kubectl":
                self.cluster.kubectl(*here[1:])

    def _here(self, word: str, chart: Path) -> str:
        prometheus = self.cluster.prometheus_url or self.metering.url
        word = _WRITTEN_REGISTRY.sub(self.cluster.registry, word).replace(_WRITTEN_PROMETHEUS, prometheus)
        return str(chart) if word == _WRITTEN_CHART else str(REPOSITORY / word) if word.startswith("helm/") else word

    def apply(self, *documents: Mapping[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(items))

    def first_budget(self) -> Sequence[str]:
        """Apply the README's budgets in mode Strict, and wait until each is Ready; their names."""
        documents = readme_budgets()
        for each in documents:
            if "parent" not in each["spec"]:
                each["spec"]["mode"] = "Strict"  # the page begins with Observe
        self.apply(*documents)
        names = [each["metadata"]["name"] for each in documents]
        for name in names:
            self.await_ready("pb", name, timeout_s=BUDGET_S)
        return names

    def limit(self, name: str, limit_w: int) -> None:
        """Patch a budget's limit, as the README does."""
        self.cluster.kubectl("patch", "pb", name, "--type=merge", "-p", json.dumps({"spec": {"limitWatts": limit_w}}))

    # ------------------------------------------------------------------------------------------------ looking

    def judge(self) -> Judge:
        """Of the README's feeds: row-a above rack-a1, on which every node hangs, or above the racks that a scenario made of it
        (`Meters.racks`). It reads the GPUs themselves, and of the budgets the limits alone."""
        racks = [Feed(f"rack-{name}", parent="row-a", nodes=tuple(nodes)) for name, nodes in self.metering.meters.racks.items()]
        wiring = Wiring([Feed("row-a"), *racks])
        twins = {node: self.cluster.twin(node) for node in self.cluster.nodes()}

        def budgets() -> Sequence[Mapping[str, Any]]:
            answer = self.cluster.http.get("/apis/splitwatt.io/v1alpha1/powerbudgets")
            if not answer.is_success:  # kubectl's proxy while the API server is away, which as it comes back knows no rights yet
                raise LabError(f"the API server does not tell: {answer.text[:200]}")
            return list(answer.json()["items"])

        return Judge(twins=twins, wiring=wiring, plant=self.metering.plant, budgets=budgets)

    @property
    def lease(self) -> Mapping[str, Any]:
        """The spec of the operator's Lease; empty while nobody tells."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{OPERATOR_LEASE}"
        answer = self.cluster.http.get(path)
        found: Mapping[str, Any] = answer.json()["spec"] if answer.is_success else {}
        return found

    @property
    def term(self) -> int:
        """One more for each operator that takes the Lease."""
        return int(self.lease["leaseTransitions"])

    def renewed_since(self, since_s: float) -> bool:
        """The Lease was renewed after Unix time `since_s`: somebody reigns."""
        at = self.lease.get("renewTime")
        return at is not None and datetime.fromisoformat(at).timestamp() > since_s

    def get(self, *what: str) -> dict[str, Any]:
        """An object, or a List. Raises LabError when there is none."""
        found: dict[str, Any] = json.loads(self.cluster.kubectl("get", *what, "-o", "json").stdout)
        return found

    def pods(self, component: str) -> Sequence[dict[str, Any]]:
        """Splitwatt's own: `operator` or `agent`."""
        label = f"app.kubernetes.io/component={component}"
        items: Sequence[dict[str, Any]] = self.get("pods", "-n", NAMESPACE, "-l", label)["items"]
        return items

    def condition(self, *what: str, condition: str) -> Mapping[str, Any]:
        """Of the object that `what` names; empty while there is none."""
        status = self.get(*what).get("status", {})
        return next((each for each in status.get("conditions", ()) if each["type"] == condition), {})

    def await_ready(self, *what: str, timeout_s: float) -> float:
        """Until its condition Ready is True; the seconds that took. Raises LabError with its status."""
        try:
            return self.await_(
                "Ready", lambda: self.condition(*what, condition="Ready").get("status") == "True", timeout_s=timeout_s
            )
        except LabError as error:
            status = json.dumps(self.get(*what).get("status"))
            raise LabError(f"{' '.join(what)} is not Ready after {timeout_s:g} s: {status}") from error

    def enforced_w(self) -> Mapping[str, Sequence[float]]:
        """The truth: each GPU's enforced limit, by node."""
        return {node: [mw / 1000 for mw in self.cluster.twin(node).read_enforced_mw()] for node in self.cluster.nodes()}

    def await_(self, what: str, holds: Callable[[], bool], *, timeout_s: float) -> float:
        """Poll until it holds; the seconds that took. Raises LabError that says what did not happen. A look that fails has not
        seen it yet: an API server that is busy may let one time out."""
        started_s = time.monotonic()
        while True:
            said = ""
            try:
                if holds():
                    return time.monotonic() - started_s
            except NotHereError:
                raise
            except LabError as error:
                said = f" ({error})"
            if time.monotonic() - started_s > timeout_s:
                raise LabError(f"after {timeout_s:g} s still not: {what}{said}")
            time.sleep(_POLL_S)


def collect(cluster: Cluster, folder: Path) -> None:
    """What a person wants to read after a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = {
        "pods.txt": ["get", "pods", "-A", "-o", "wide"],
        "events.txt": ["get", "events", "-A", "--sort-by=.lastTimestamp"],
        "describe.txt": ["describe", "pods", "-n", NAMESPACE],
        "objects.yaml": ["get", "pb,np,ic", "-A", "-o", "yaml"],
        **{f"{who}.log": ["logs", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={who}", "--tail=2000"] for who in OURS},
    }
    for name, words in everything.items():
        result = cluster.kubectl(*words, check=False)
        (folder / name).write_text(result.stdout + result.stderr)
