"""What a pod meets and a developer's machine does not: a user without a name, a DNS that says nothing, a client without what
images leave out of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from splitwatt_operator.options import LEASE_S
from support.carried import carried_client, size_mb
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
    time.sleep(1.5 * LEASE_S)
    assert len(operator.reigns()) == 1 and "reign over" not in operator.text
    assert operator.healthy()
    assert len(operator.decisions(names[0])) > decided + LEASE_S


def test_the_client_that_images_carry_is_enough(datacenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = carried_client(tmp_path / "carried")
    assert size_mb(client) < 5, "its typed API and models are left out"
    monkeypatch.setenv("PYTHONPATH", str(client))
    typed = [sys.executable, "-c", "from kubernetes.client import V1Pod"]
    missing = subprocess.run(typed, capture_output=True, text=True, timeout=60, check=False)
    assert "ModuleNotFoundError" in missing.stderr, "else the processes below would not have it either"
    datacenter.add_gpu_nodes("n1", gpus=2)
    datacenter.budget("leaf", limitWatts=2800)  # 2000 W of it are the node's own
    operator = datacenter.active_operator()
    datacenter.eventually("caps fit the limit", lambda: sum(datacenter.caps_w()) * 1.04 <= 800)
    first = operator.reigns()[0]
    operator.process.kill()
    successor = datacenter.active_operator()
    assert successor.reigns()[0] > first
