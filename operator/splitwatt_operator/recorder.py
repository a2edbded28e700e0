"""Kubernetes Events: what a person would want to know, said once, and never in the way of a decision.

`note` only queues; one task sends. The same words about the same object are not repeated within `REPEAT_AFTER_S`, the
queue and the memory of what was said are bounded, and a bucket limits the rate, so that no storm of reasons becomes a
storm of writes. What is left out is counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from splitwatt_client.errors import OutcomeUnknown, Rejected

from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import NotSent, Pen, Stored

log = logging.getLogger(__name__)

REPORTING_CONTROLLER: Final = "splitwatt.io/operator"
EVENTS_NAMESPACE: Final = "default"
"""Where Kubernetes keeps the Events of cluster-scoped objects."""
REPEAT_AFTER_S: Final = 600.0
REASON_GAP_S: Final = 5.0
"""At most one Event of a reason about an object in this time, for messages that carry changing numbers."""
MAX_REMEMBERED: Final = 1024
MAX_QUEUED: Final = 256
EVENTS_PER_S: Final = 2.0
MAX_BURST: Final = 20
MAX_NOTE_CHARS: Final = 1000
"""Kubernetes takes at most 1024."""
MAX_NAME_CHARS: Final = 63


@dataclass(frozen=True, slots=True)
class Subject:
    """What an Event is about. `uid` may be empty when the object is not known (any more)."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    subject: Subject
    reason: str
    message: str
    warning: bool


class Recorder:
    """`instance` names this process in the Events."""

    def __init__(self, metrics: Metrics, *, instance: str) -> None:
        self._metrics = metrics
        self._instance = instance
        self._queue: asyncio.Queue[_Entry] = asyncio.Queue(maxsize=MAX_QUEUED)
        self._said: OrderedDict[tuple[Subject, str, str], float] = OrderedDict()
        """When (subject, reason, message) was last said; with an empty message: when any of that reason was."""

    def note(self, subject: Subject, *, reason: str, message: str, warning: bool = False) -> None:
        """`reason` in CamelCase, `message` one sentence. Never blocks, never raises."""
        now_s = asyncio.get_running_loop().time()
        if self._said_within(now_s, (subject, reason, message), REPEAT_AFTER_S) or self._said_within(
            now_s, (subject, reason, ""), REASON_GAP_S
        ):
            return
        for key in ((subject, reason, message), (subject, reason, "")):
            self._said.pop(key, None)
            self._said[key] = now_s
        while len(self._said) > MAX_REMEMBERED:
            self._said.popitem(last=False)
        log.log(
            logging.WARNING if warning else logging.INFO, "%s", message,
            extra={"event": reason, "kind": subject.kind, "object": subject.name, "namespace": subject.namespace},
        )  # fmt: skip
        try:
            self._queue.put_nowait(_Entry(subject, reason, message, warning))
        except asyncio.QueueFull:
            self._metrics.events_dropped.inc()

    def _said_within(self, now_s: float, key: tuple[Subject, str, str], gap_s: float) -> bool:
        return now_s - self._said.get(key, float("-inf")) < gap_s

    async def run(self, pen: Pen) -> None:
        """Send what is queued until cancelled."""
        loop = asyncio.get_running_loop()
        tokens, refilled_s = float(MAX_BURST), loop.time()
        while True:
            entry = await self._queue.get()
            tokens = min(float(MAX_BURST), tokens + (loop.time() - refilled_s) * EVENTS_PER_S)
            refilled_s = loop.time()
            if tokens < 1.0:
                await asyncio.sleep((1.0 - tokens) / EVENTS_PER_S)
                tokens, refilled_s = 1.0, loop.time()
            tokens -= 1.0
            # An Event is a courtesy: its loss must not stop anything, and the log line above has its words.
            match await pen.create(self._manifest(entry)):
                case Stored():
                    pass
                case NotSent():
                    self._metrics.events_dropped.inc()
                case Rejected() | OutcomeUnknown() as error:
                    self._metrics.events_dropped.inc()
                    log.warning("event not recorded: %s", error)

    def _manifest(self, entry: _Entry) -> Mapping[str, Any]:
        subject = entry.subject
        regarding = {"apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name}
        if subject.namespace:
            regarding["namespace"] = subject.namespace
        if subject.uid:
            regarding["uid"] = subject.uid
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{subject.name[:MAX_NAME_CHARS].rstrip('.-')}.{uuid4().hex[:16]}",
                "namespace": subject.namespace or EVENTS_NAMESPACE,
            },
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": REPORTING_CONTROLLER,
            "reportingInstance": self._instance[:128],
            "action": "Decide",
            "reason": entry.reason[:128],
            "note": entry.message[:MAX_NOTE_CHARS],
            "type": "Warning" if entry.warning else "Normal",
            "regarding": regarding,
        }
