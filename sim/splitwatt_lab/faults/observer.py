"""What the conditions said, and when: a thread that reads the objects twice a second, as a person with kubectl would.

It never feeds the judge. Every (object, condition, status, reason) is kept once for each time that the
condition turned, with its first message and time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.scene import ANY, Expect, Json
from splitwatt_lab.install import NAMESPACE

EVERY_S: Final = 0.5
API: Final = "/apis/splitwatt.io/v1alpha1"
LEASE: Final = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases?resourceVersion=0"
PATHS: Final[Mapping[str, str]] = {"pb": "powerbudgets", "np": "nodepowers", "ic": "inferenceclusters"}


@dataclass(frozen=True, slots=True)
class Said:
    """One condition as it was seen first, `t_s` Unix time."""

    kind: str
    name: str
    type: str
    status: str
    reason: str
    message: str
    t_s: float
    turned: str = ""
    """When the condition last changed its status, as it says itself."""

    def meets(self, expect: Expect) -> bool:
        wanted = ((expect.name, self.name), (expect.type, self.type), (expect.status, self.status))
        return (
            self.kind == expect.kind
            and all(want in (ANY, have) for want, have in wanted)
            and (not expect.reasons or self.reason in expect.reasons)
        )

    def __str__(self) -> str:
        return f"{self.kind}/{self.name} {self.type}={self.status} {self.reason}: {self.message}"


def said_of(kind: str, obj: Mapping[str, Any], t_s: float) -> list[Said]:
    """The conditions of one object as the API server returns it."""
    name = obj["metadata"]["name"]
    conditions: Sequence[Mapping[str, str]] = (obj.get("status") or {}).get("conditions") or ()
    return [
        Said(kind, name, c["type"], c["status"], c.get("reason", ""), c.get("message", ""), t_s, c.get("lastTransitionTime", ""))
        for c in conditions
    ]


class Observer:
    """`get` fetches an API path. Use as a context manager."""

    def __init__(self, get: Callable[[str], Json]) -> None:
        self._get = get
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._lock = threading.Lock()
        self._said: dict[tuple[str, ...], Said] = {}
        self.objects: dict[str, dict[str, Json]] = {kind: {} for kind in PATHS}
        self.leases: list[Json] = []
        self.read_s = 0.0
        """When `objects` were read, Unix time."""

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=40.0)

    def forget(self) -> None:
        """Begin a scene: only what is said from now on counts."""
        with self._lock:
            self._said.clear()

    def said(self) -> list[Said]:
        with self._lock:
            return sorted(self._said.values(), key=lambda said: said.t_s)

    def look(self) -> None:
        """Read everything now; nothing changes while the API server is away."""
        asked_s = time.time()
        try:
            found = {kind: self._get(f"{API}/{path}?resourceVersion=0")["items"] for kind, path in PATHS.items()}
            self.leases = self._get(LEASE)["items"]
        except (httpx.TransportError, LabError, ValueError):
            return
        self.objects = {kind: {obj["metadata"]["name"]: obj for obj in items} for kind, items in found.items()}
        self.read_s = asked_s
        with self._lock:
            for kind, items in found.items():
                for obj in items:
                    for said in said_of(kind, obj, asked_s):
                        self._said.setdefault((kind, said.name, said.type, said.status, said.reason, said.turned), said)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.look()
