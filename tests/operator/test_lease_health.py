"""/healthz looks at the Lease: who should hold it, or be refused it, and is neither, is told."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from splitwatt_operator.app import HEARING_S, LEASE_SILENCE_S, lease_problem
from splitwatt_operator.cluster.credentials import KopfLogin
from splitwatt_operator.cluster.store import Key, Kind, Store
from splitwatt_operator.cluster.watch import HEARTBEAT_S, Watches

NOW_S = 10_000.0
LONG_S = LEASE_SILENCE_S + 1.0


@pytest.mark.parametrize(
    ("judged_ago_s", "tried_ago_s", "hearing_s", "said"),
    [
        (1.0, 1.0, 1e6, None),  # held, or a standby that watches another's
        (LONG_S, LONG_S, 0.0, "neither held nor refused for 61 s"),  # nobody asks: wedged
        (LONG_S, 1.0, 0.0, None),  # the API server is silent to everybody: no restart would help
        (LONG_S, 1.0, HEARING_S, "neither held nor refused"),  # it answers the watches, but not us
        (LONG_S, 1.0, HEARING_S - 1.0, None),  # it has only just come back
        (LEASE_SILENCE_S - 1.0, LEASE_SILENCE_S - 1.0, 1e6, None),
    ],
)
def test_the_lease_is_held_or_refused_within_a_minute(
    judged_ago_s: float, tried_ago_s: float, hearing_s: float, said: str | None
) -> None:
    lease = SimpleNamespace(judged_s=NOW_S - judged_ago_s, tried_s=NOW_S - tried_ago_s)
    problem = lease_problem(lease, hearing_s=hearing_s, now_s=NOW_S)  # type: ignore[arg-type]
    if said is None:
        assert problem is None
    else:
        assert said in (problem or "")


async def test_how_long_the_watches_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [NOW_S]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watches = Watches(Store(), KopfLogin(None), None, own_lease=Key("s", "operator"))  # type: ignore[arg-type]
    assert watches.hearing_s(clock[0]) == 0.0
    for version in range(1, 6):
        clock[0] += HEARTBEAT_S / 2
        lease = {"metadata": {"name": "n", "namespace": "kube-node-lease", "resourceVersion": str(version)}}
        watches._take(Kind.LEASE, "MODIFIED", lease)
    assert watches.hearing_s(clock[0]) == 4 * HEARTBEAT_S / 2
    assert watches.hearing_s(clock[0] + HEARTBEAT_S) == 0.0, "silence"
    clock[0] += 10 * HEARTBEAT_S
    watches._take(Kind.LEASE, "MODIFIED", lease)
    assert watches.hearing_s(clock[0]) == 0.0, "it counts anew"
