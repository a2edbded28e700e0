"""The agent's own connection, on a real process and the real API server: who is let in, what goes out, and what a brake does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from splitwatt_agent.state_dir import RECORD_FILE
from splitwatt_core.protocol.contract import GRANTS_PER_TERM
from splitwatt_core.protocol.stream import audience_of
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_nvml_twin.faults import Fault
from splitwatt_nvml_twin.handle import Demand
from support.agent_bench import AgentBench
from support.peers import Caller, token
from support.waiting import eventually

NAMESPACE = "kube-system"
OPERATOR = "stream-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{OPERATOR}"


@dataclass
class Account:
    """Where the operator's account is."""

    plane: ControlPlane
    namespace: str = NAMESPACE


@pytest.fixture
def bench(crds: ControlPlane, tmp_path: Path) -> Iterator[AgentBench]:
    for account in (OPERATOR, "somebody"):
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}}
        answer = crds.http.post(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", json=body)
        assert answer.is_success or answer.status_code == 409, answer.text
    with AgentBench(crds, tmp_path) as bench:
        yield bench


def start(bench: AgentBench, *arguments: str) -> Caller:
    bench.create()
    bench.start("--stream", "127.0.0.1:0", "--stream-user", USER, *arguments)
    eventually("the status says where it listens", lambda: bench.object().get("status", {}).get("stream"))
    return Caller(Account(bench.plane), bench.node, OPERATOR)


def test_a_brake_lowers_at_once_and_only_a_later_grant_lifts_it(bench: AgentBench) -> None:
    caller = start(bench)
    number = bench.grant({0: 500, 1: 400})
    bench.await_ack(number, (0, 1))
    answer = caller.brake(number, to="Minimum")
    assert answer.status_code == 200 and answer.json() == {"held": list(bench.twin.uuids)}
    assert bench.limits_w() == [(200, 200)] * 2, "the answer comes after the limits"
    braked = eventually("the status names it", lambda: bench.line(0).get("brake"))
    assert braked == {"grant": number, "capWatts": 200}

    bench.end(bench._processes[-1], 9)  # type: ignore[arg-type]
    bench.start("--stream", "127.0.0.1:0", "--stream-user", USER)
    eventually("another life names it too", lambda: bench.line(1).get("brake") == braked)
    eventually("both are acknowledged", lambda: bench.acked(0) == number)
    assert bench.limits_w() == [(200, 200)] * 2

    later = bench.grant({0: 450, 1: 300})
    bench.await_ack(later, (0, 1))
    assert bench.limits_w() == [(450, 450), (300, 300)]
    assert "brake" not in bench.line(0)
    assert caller.brake(number, to="Minimum").json() == {"held": []}, "an old one comes again"
    time.sleep(0.5)
    assert bench.limits_w() == [(450, 450), (300, 300)]


def test_grants_under_a_brake_are_acknowledged_and_do_not_lift_it(bench: AgentBench) -> None:
    caller = start(bench)
    bench.await_ack(bench.grant({0: 500, 1: 400}), (0, 1))
    ahead = GRANTS_PER_TERM + 3
    assert caller.brake(ahead, to="Safe", maxClockMegahertz=1200, uuids=[bench.twin.uuids[0]]).json() == {
        "held": [bench.twin.uuids[0]]
    }
    under = bench.grant({0: 600, 1: 600}, safe_w=600)
    bench.await_ack(under, (0, 1))
    assert bench.limits_w() == [(500, 500), (600, 600)], "safe caps became watts when the brake came"
    assert bench.line(0)["brake"] == {"grant": ahead, "capWatts": 500, "maxClockMegahertz": 1200}


def test_the_limit_is_lowered_while_the_disk_is_full(bench: AgentBench) -> None:
    """R28: it lowers first; what is not durable is not said to be held."""
    caller = start(bench)
    number = bench.grant({0: 500, 1: 400})
    bench.await_ack(number, (0, 1))
    blocker = bench.state_dir / f".{RECORD_FILE}.new"
    blocker.mkdir()
    (blocker / "in-the-way").write_text("")
    answer = caller.brake(number, to="Minimum")
    assert answer.status_code == 503 and "send it again" in answer.json()["error"]
    assert bench.limits_w() == [(200, 200)] * 2
    (blocker / "in-the-way").unlink()
    blocker.rmdir()
    eventually("it is durable then", lambda: bench.line(0).get("brake") == {"grant": number, "capWatts": 200})
    assert caller.brake(number, to="Minimum").json() == {"held": list(bench.twin.uuids)}


def test_an_agent_that_only_observes_is_not_braked(bench: AgentBench) -> None:
    caller = start(bench, "--observe")
    assert caller.brake(GRANTS_PER_TERM, to="Minimum").json() == {"held": []}
    time.sleep(0.5)
    assert bench.limits_w() == [(700, 700)] * 2


def test_only_the_operator_is_let_in(bench: AgentBench) -> None:
    caller = start(bench)
    plane, audience = bench.plane, audience_of(bench.node)
    refused = {
        "nobody": "-",
        "nonsense": "x.y.z",
        "another node's": token(plane, NAMESPACE, OPERATOR, audience_of("another")),
        "the API server's own": token(plane, NAMESPACE, OPERATOR, "https://kubernetes.default.svc.cluster.local"),
        "another account's": token(plane, NAMESPACE, "somebody", audience),
    }
    for who, bearer in refused.items():
        with caller.client(bearer=bearer) as client:
            for answer in (client.post("/v1/brake", json={"grant": GRANTS_PER_TERM}), client.get("/v1/samples")):
                assert answer.status_code == 401, who
    assert bench.limits_w() == [(700, 700)] * 2
    with caller.client() as client:
        assert client.get("/v1/other").status_code == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "Expecting"),
        ("[]", "a brake is an object"),
        ('{"to": "Safe"}', "grant must be"),
        ('{"grant": 0}', "above 0"),
        ('{"grant": 7, "to": "Full"}', "Full"),
        ('{"grant": 7, "to": "Clocks"}', "megahertz"),
        ('{"grant": 7, "cap": 5}', "no field cap"),
        ('{"grant": 7, "uuids": [1]}', "uuids must be"),
    ],
)
def test_what_is_no_brake_is_refused_with_a_sentence(bench: AgentBench, body: str, said: str) -> None:
    caller = start(bench)
    with caller.client() as client:
        answer = client.post("/v1/brake", content=body)
    assert answer.status_code == 400 and said in answer.json()["error"]


def rows(lines: Iterator[str], node: str) -> dict[str, Any]:
    """The next sample's, by GPU."""
    sample = json.loads(next(lines))
    assert sample["node"] == node and sample["bootID"] == "boot-1"
    assert sample["ageSeconds"] >= 0 and abs(sample["sampledAt"] - time.time()) < 60.0
    return {row["uuid"]: row for row in sample["gpus"]}


def test_samples_say_what_gpus_draw_and_a_loss_at_once(bench: AgentBench) -> None:
    caller = start(bench)
    bench.twin.set_demands({0: Demand(650.0), 1: Demand(0.0)})
    bench.await_ack(bench.grant({0: 400, 1: 300}), (0, 1))
    with caller.client() as client, client.stream("GET", "/v1/samples?hertz=10") as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()

        first, second = bench.twin.uuids
        eventually("its draw", lambda: abs(rows(lines, bench.node)[first]["powerWatts"] - 400) < 20)
        assert rows(lines, bench.node)[second]["managementCapWatts"] == 300
    with caller.client() as client, client.stream("GET", "/v1/samples?hertz=0.01") as answer:
        lines = answer.iter_lines()
        assert rows(lines, bench.node)[first]["health"] == "OK"
        bench.twin.set_fault(0, Fault.gpu_lost())
        assert rows(lines, bench.node)[first]["health"] == "Lost", "100 s before the next one was due"
    with caller.client() as client:
        for hertz in ("0", "11", "many"):
            assert client.get(f"/v1/samples?hertz={hertz}").status_code == 400


def test_streams_are_limited_and_a_slow_reader_costs_nobody_anything(bench: AgentBench) -> None:
    caller = start(bench)
    number = bench.grant({0: 500, 1: 400})
    bench.await_ack(number, (0, 1))
    clients = [caller.client() for _ in range(9)]
    streams = [client.stream("GET", "/v1/samples?hertz=10") for client in clients]
    answers = [each.__enter__() for each in streams]
    assert [answer.status_code for answer in answers] == [200] * 8 + [503]
    begun_s = time.monotonic()
    assert caller.brake(number, to="Minimum").json() == {"held": list(bench.twin.uuids)}  # while nobody reads
    assert time.monotonic() - begun_s < 20.0
    for each, client in zip(streams, clients, strict=True):
        each.__exit__(None, None, None)
        client.close()

    def free() -> bool:
        with caller.client() as client, client.stream("GET", "/v1/samples") as answer:
            return answer.status_code == 200

    eventually("places are free again", free)
