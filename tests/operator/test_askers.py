"""What a foreign pod that waits behind our gate is told, and how often."""

from __future__ import annotations

import pytest
from splitwatt_core.admission.foreign import asker_of
from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.snapshot import AdmissionVerdict
from splitwatt_core.admission.standing import ClusterStanding
from splitwatt_core.clusters import ClusterName
from splitwatt_operator import recorder
from splitwatt_operator.cluster.store import Kind
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving.askers import REPEAT_S, Askers
from support.objects import Objects

ASKER = asker_of(PodName("s", "mine"))


def standing(reason: str, message: str) -> ClusterStanding:
    return ClusterStanding(AdmissionVerdict(reason == "Admitted", reason, message), {}, 0.0)


async def test_a_reason_is_said_once_and_again_when_it_is_another_or_old(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder, "REASON_GAP_S", 0.0)
    objects = Objects()
    objects.put(Kind.POD, "mine", meta={"labels": {"splitwatt.io/cluster": ""}}, spec={"containers": []})
    askers = Askers(objects.store, Recorder(Metrics(), instance="t"))

    def told(now_s: float, reason: str, message: str) -> list[str]:
        caplog.clear()
        askers.tell({ASKER: standing(reason, message)}, now_s)
        return [record.getMessage() for record in caplog.records]

    assert told(100.0, "NoPhase", "label it") == ["label it"]
    assert told(101.0, "NoPhase", "label it now") == []
    assert told(102.0, "InsufficientPower", "7 W") == ["7 W"]
    assert told(101.0 + REPEAT_S, "InsufficientPower", "6 W") == [], "numbers change all the time"
    assert told(102.0 + REPEAT_S, "InsufficientPower", "5 W") == ["5 W"]
    assert told(103.0 + REPEAT_S, "Admitted", "in") == []
    assert told(104.0 + REPEAT_S, "InsufficientPower", "4 W") == ["4 W"], "a new wait is a new word"


async def test_clusters_and_pods_that_are_gone_are_told_nothing_here(caplog: pytest.LogCaptureFixture) -> None:
    askers = Askers(Objects().store, Recorder(Metrics(), instance="t"))
    askers.tell({name: standing("InsufficientPower", "7 W") for name in (ASKER, ClusterName("s", "chat"))}, 1.0)
    assert not caplog.records
