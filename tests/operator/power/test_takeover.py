"""How soon somebody decides again after the leader was killed, on real processes; and what one that is only stopped proves."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from splitwatt_operator.options import parse

LEASE_S = 3
HOLD_S = 0.8 * LEASE_S
RENEWED_S = 1.0
"""Before it was stopped, at most."""
MUCH_S = 13.0
"""Far below the 15 s of a Lease that is not known to be dead, and above all that a busy machine adds."""


def arguments(folder: Path, *, lease_s: int) -> list[str]:
    return ["--lease-seconds", str(lease_s), "--state-dir", str(folder)]


def gap_s(datacenter: Any, budget: str, before: Any, after: Any) -> float:
    """Between the last decision of one process and the first one of another."""
    datacenter.eventually("the successor decides", lambda: after.decisions(budget))
    return float(after.decisions(budget)[0]["time_s"] - before.decisions(budget)[-1]["time_s"])


def stamped(datacenter: Any) -> set[int]:
    return {((datacenter.node_power(node) or {}).get("spec") or {}).get("term", 0) for node in datacenter.twins}


def test_a_standby_decides_soon_after_the_leader_was_killed(datacenter: Any, tmp_path: Path) -> None:
    datacenter.add_gpu_nodes("n1", gpus=2)
    budget = datacenter.budget("leaf", limitWatts=2800)
    leader = datacenter.active_operator(arguments=arguments(tmp_path / "a", lease_s=LEASE_S))
    standby = datacenter.operator(arguments=arguments(tmp_path / "b", lease_s=LEASE_S))
    datacenter.eventually("caps fit the limit", lambda: sum(datacenter.caps_w()) * 1.04 <= 800)
    assert not standby.reigns(), "one is active"
    caps_w = datacenter.caps_w()
    leader.process.kill()
    assert gap_s(datacenter, budget, leader, standby) < MUCH_S
    assert standby.reigns()[0] > leader.reigns()[0]
    datacenter.eventually("stamped anew", lambda: stamped(datacenter) == {standby.reigns()[0]})
    assert datacenter.caps_w() == caps_w, "a takeover raises nothing"


def test_a_process_started_again_in_its_place_waits_for_no_lease(datacenter: Any, tmp_path: Path) -> None:
    datacenter.add_nodes("n1")
    budget = datacenter.budget("leaf", limitWatts=40000)
    place = arguments(tmp_path / "pod", lease_s=60)
    first = datacenter.active_operator(arguments=place)
    datacenter.eventually("it decides", lambda: first.decisions(budget))
    first.process.kill()
    again = datacenter.active_operator(arguments=place)
    assert gap_s(datacenter, budget, first, again) < MUCH_S
    assert again.reigns()[0] > first.reigns()[0]


def test_a_leader_that_is_only_stopped_is_waited_for_also_in_its_place(datacenter: Any, tmp_path: Path) -> None:
    """Its lock is still held, so nothing is proven; when it wakes it finds a higher term, sends nothing and ends."""
    datacenter.add_nodes("n1")
    budget = datacenter.budget("leaf", limitWatts=40000)
    place = arguments(tmp_path / "pod", lease_s=LEASE_S)
    sleeper = datacenter.active_operator(arguments=place)
    datacenter.eventually("it decides", lambda: sleeper.decisions(budget))
    sleeper.process.send(signal.SIGSTOP)
    stopped_s = time.time()
    other = datacenter.active_operator(arguments=place)
    assert "belongs to another process that lives" in other.text
    datacenter.eventually("the other one decides", lambda: other.decisions(budget))
    assert other.decisions(budget)[0]["time_s"] >= stopped_s + HOLD_S - RENEWED_S, "the sleeper might still have sent"
    decided = len(sleeper.decisions(budget))
    sleeper.process.send(signal.SIGCONT)
    datacenter.eventually("the sleeper ends", lambda: not sleeper.process.running)
    assert "superseded" in sleeper.text
    assert len(sleeper.decisions(budget)) <= decided + 1, "one that was under way may be told"
    assert other.process.running


@pytest.mark.parametrize("seconds", ["1", "61", "2.5", "x"])
def test_a_lease_of_no_use_is_refused_with_a_sentence(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--prometheus-url", "http://p:9090", "--lease-seconds", seconds])
    assert "must be a whole number of seconds from 2 to 60" in capsys.readouterr().err
