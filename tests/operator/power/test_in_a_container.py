"""What a pod meets and a developer's machine does not: a user without a name, and a DNS that says nothing."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from splitwatt_operator.app import LEASE_DURATION_S
from support.unknown_user import as_unknown_user

SILENT_NAME = "prometheus.silent.example"
SILENT_DNS = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>
typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {{
  while (host != NULL && strcmp(host, "{SILENT_NAME}") == 0) sleep(60);
  return ((look_up *)dlsym(RTLD_NEXT, "getaddrinfo"))(host, service, hints, found);
}}
"""


def test_it_reigns_as_a_user_without_a_name(datacenter: Any) -> None:
    datacenter.add_nodes("n1")
    budget = datacenter.budget("leaf", limitWatts=40000)
    operator = datacenter.active_operator(through=as_unknown_user())
    datacenter.await_condition(budget, "Feasible", "True")
    assert operator.process.running


def test_a_silent_dns_costs_meters_and_no_lease(datacenter: Any, tmp_path: Path) -> None:
    source, library = tmp_path / "silent.c", tmp_path / "silent.so"
    source.write_text(SILENT_DNS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    datacenter.add_nodes("n1")
    # Every meter asks once a second: the threads of a pool of any size would soon all wait for DNS.
    meters = [{"selector": f'rack_power_watts{{rack="{n}"}}', "maxAgeSeconds": 5} for n in range(8)]
    names = [datacenter.budget(f"b{n}", leaf=n == 0, limitWatts=40000, meter=meter) for n, meter in enumerate(meters)]
    operator = datacenter.active_operator(
        prometheus_url=f"http://{SILENT_NAME}:9090", env={"LD_PRELOAD": str(library)}
    )  # fmt: skip
    datacenter.eventually(
        "a person is told",
        lambda: f"DNS does not answer for {SILENT_NAME}" in datacenter.condition(names[0], "TelemetryFresh").get("message", ""),
    )
    decided = len(operator.decisions(names[0]))
    time.sleep(2 * LEASE_DURATION_S)
    assert len(operator.reigns()) == 1 and "reign over" not in operator.text
    assert operator.healthy()
    assert len(operator.decisions(names[0])) > decided + LEASE_DURATION_S
