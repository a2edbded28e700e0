"""Prometheus and meters that go away and come back, and a meter that never was one: said, and nothing else stops."""

from __future__ import annotations

import time
from typing import Any


def test_a_lost_meter_is_said_and_then_found_again(datacenter: Any) -> None:
    datacenter.add_nodes("n1")
    selector = f'rack_power_watts{{rack="{datacenter.rack}"}}'
    budget = datacenter.budget("leaf", limitWatts=40000, meter={"selector": selector, "maxAgeSeconds": 4})
    operator = datacenter.active_operator()
    datacenter.eventually(
        "the missing series is named", lambda: "no series" in datacenter.condition(budget, "TelemetryFresh").get("message", "")
    )
    datacenter.meter.watts[datacenter.rack] = 6789.0
    datacenter.await_condition(budget, "TelemetryFresh", "True")
    datacenter.eventually(
        "the meter is shown", lambda: operator.metric("splitwatt_budget_measured_watts", budget=budget) == 6789.0
    )
    datacenter.prometheus.stop()
    datacenter.await_condition(budget, "TelemetryFresh", "False", "MeterStale")
    datacenter.eventually(
        "the cause is named",
        lambda: "no answer from Prometheus" in datacenter.condition(budget, "TelemetryFresh").get("message", ""),
    )
    assert operator.process.running
    decided = len(operator.decisions(budget))
    time.sleep(3.0)
    assert len(operator.decisions(budget)) > decided
    datacenter.prometheus.start()
    datacenter.await_condition(budget, "TelemetryFresh", "True")


def test_a_selector_that_prometheus_refuses_stops_no_other_budget(datacenter: Any) -> None:
    datacenter.add_nodes("n1")
    datacenter.meter.watts[datacenter.rack] = 5000.0
    good = datacenter.budget("leaf", limitWatts=40000, meter={"selector": f'rack_power_watts{{rack="{datacenter.rack}"}}'})
    bad = datacenter.budget("bad", leaf=False, limitWatts=9000, meter={"selector": 'rack_power_watts{rack=~"("}'})
    datacenter.active_operator()
    row = datacenter.await_condition(bad, "TelemetryFresh", "False", "InvalidSelector")
    assert "selector" in row["message"]
    datacenter.await_condition(good, "TelemetryFresh", "True")
    # Put right, it is measured.
    datacenter.budget("bad", leaf=False, limitWatts=9000, meter={"selector": f'rack_power_watts{{rack="{datacenter.rack}"}}'})
    datacenter.await_condition(bad, "TelemetryFresh", "True")


def test_numbers_that_no_schema_would_take_are_told_and_end_nothing(datacenter: Any) -> None:
    datacenter.add_nodes("n1")
    datacenter.meter.watts[datacenter.rack] = 4294967295.0
    budget = datacenter.budget("leaf", limitWatts=40000, meter={"selector": f'rack_power_watts{{rack="{datacenter.rack}"}}'})
    operator = datacenter.active_operator()
    row = datacenter.await_condition(budget, "TelemetryFresh", "False", "Implausible")
    assert "the meter reads 4294967295 W" in row["message"]
    big = datacenter.budget("big", leaf=False, limitWatts=1000, fixedWatts=1_000_000_000)
    datacenter.budget("small", leaf=False, limitWatts=1000, fixedWatts=1_000_000_000, parent=big)
    datacenter.eventually("both are summed up", lambda: datacenter.status(big).get("chargeWatts") == 2_000_000_000)
    datacenter.meter.watts[datacenter.rack] = 5000.0
    datacenter.await_condition(budget, "TelemetryFresh", "True")
    assert operator.process.running
