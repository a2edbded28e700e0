"""A load driver that forgets no request: what was asked, of whom, when, and what came of it.

Open loop: requests start at a steady rate, whatever becomes of those before. Each goes to the next ready endpoint of the
cluster's pods, or of the Service before its routers, as a client with a list of addresses would send it; nothing is asked twice.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from splitwatt_core.names import LABEL_CLUSTER, LABEL_ROLE
from splitwatt_lab.errors import LabError

from ground.cluster import Cluster
from ground.serving import MODEL

MAX_IN_FLIGHT: Final = 64
REQUEST_S: Final = 60.0
LOOK_S: Final = 0.5
SERVICE: Final = "kubernetes.io/service-name"
"""By which an EndpointSlice says whose it is."""
NO_PODS: Final = "no ready pod"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `at_s` is Unix time; `status` 0: no answer came, and `said` says why."""

    at_s: float
    took_s: float
    pod: str
    status: int
    tokens: int
    said: str = ""


class Traffic:
    """Between entering and leaving the block. `requests` may be read at any time. `routed`: they go to the cluster's routers."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        name: str,
        per_s: float,
        tokens: int = 16,
        prompt: int = 64,
        routed: bool = False,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._every_s = 1.0 / per_s
        self._tokens = tokens
        self._labels = f"{SERVICE}={name}" if routed else f"{LABEL_CLUSTER}={name},{LABEL_ROLE}"
        self._body = {"model": MODEL, "prompt": list(range(prompt)), "max_tokens": tokens}
        self._pods: Sequence[tuple[str, str]] = ()
        self._turn = itertools.count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._client = httpx.Client(timeout=REQUEST_S, trust_env=False, limits=httpx.Limits(max_connections=MAX_IN_FLIGHT))
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._find_pods, self._send)]
        self._failure: BaseException | None = None
        self.requests: list[Asked] = []

    def __enter__(self) -> Self:
        """Raises LabError where nobody would answer."""
        self._look()
        if not self._pods:
            raise LabError(f"no pod of {self._namespace}/{self._name} is ready: there is nobody to ask")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(REQUEST_S + 10)
        self._client.close()
        self.write(self._cluster.scratch / "logs" / f"traffic-{self._name}.jsonl")
        if self._failure is not None and error is None:
            raise LabError(f"the driver of {self._name} failed: {self._failure!r}") from self._failure

    def write(self, file: Path) -> None:
        with file.open("a") as lines:
            for asked in self.since(0):
                lines.write(json.dumps(asdict(asked)) + "\n")

    def since(self, at_s: float) -> Sequence[Asked]:
        with self._lock:
            return [asked for asked in self.requests if asked.at_s >= at_s]

    def failed(self) -> Sequence[Asked]:
        """Every request that did not get each token it asked for."""
        return [asked for asked in self.since(0) if asked.status != httpx.codes.OK or asked.tokens != self._tokens]

    # ------------------------------------------------------------------------------------------------ threads

    def _find_pods(self) -> None:
        try:
            while not self._stop.is_set():
                self._look()
                self._stop.wait(LOOK_S)
        except BaseException as error:  # noqa: BLE001 - kept for the end of the block, which raises it
            self._failure = error

    def _look(self) -> None:
        words = ("get", "endpointslices", "-n", self._namespace, "-l", self._labels, "-o", "json")
        found = self._cluster.kubectl(*words, check=False)
        if found.returncode == 0:
            self._pods = sorted({pod for piece in json.loads(found.stdout)["items"] for pod in _ready(piece)})

    def _send(self) -> None:
        try:
            with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
                next_s = time.monotonic()
                while not self._stop.wait(max(0.0, next_s - time.monotonic())):
                    next_s += self._every_s
                    pool.submit(self._ask)
        except BaseException as error:  # noqa: BLE001 - as above
            self._failure = error

    def _ask(self) -> None:
        at_s, pods = time.time(), self._pods
        if not pods:
            return self._keep(Asked(at_s, 0.0, "", 0, 0, NO_PODS))
        pod, address = pods[next(self._turn) % len(pods)]
        try:
            answer = self._client.post(f"http://{address}/v1/completions", json=self._body)
        except httpx.HTTPError as error:
            return self._keep(Asked(at_s, time.time() - at_s, pod, 0, 0, repr(error)))
        body: Mapping[str, Any] = answer.json() if answer.is_success else {}
        tokens = int(body.get("usage", {}).get("completion_tokens", 0))
        return self._keep(Asked(at_s, time.time() - at_s, pod, answer.status_code, tokens, "" if body else answer.text[:200]))

    def _keep(self, asked: Asked) -> None:
        with self._lock:
            self.requests.append(asked)


def _ready(piece: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(pod, address with port) of each endpoint that takes requests."""
    port = next((each["port"] for each in piece.get("ports") or () if each.get("name") == "http"), None)
    return [
        (endpoint["targetRef"]["name"], f"{address}:{port}")
        for endpoint in piece.get("endpoints") or ()
        for address in endpoint["addresses"]
        if port is not None and endpoint.get("conditions", {}).get("ready") and not endpoint["conditions"].get("terminating")
    ]
