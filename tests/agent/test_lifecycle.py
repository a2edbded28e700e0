"""What outlives the agent, and what a new one believes: ends, restarts, boots, recreated and restored objects."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core.protocol.contract import GRANTS_PER_TERM
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_nvml_twin.faults import Call, Fault
from support.agent_bench import NODE_POWERS, AgentBench
from support.waiting import eventually

HURRIED_AGENT = Path(__file__).resolve().parents[1] / "support" / "hurried_agent.py"
HURRIED_S = 4.0


@pytest.fixture
def bench(crds: ControlPlane, tmp_path: Path) -> Iterator[AgentBench]:
    with AgentBench(crds, tmp_path) as bench:
        yield bench


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_end_of_the_agent_raises_a_limit(bench: AgentBench, number: signal.Signals) -> None:
    bench.create()
    process = bench.start()
    bench.await_ack(bench.grant({0: 300, 1: 250}, max_clock_mhz=1200), (0, 1))
    eventually("clocks are locked", lambda: bench.twin.read(0).locked_max_mhz is not None)
    code = bench.end(process, number)
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    time.sleep(2.0)
    assert bench.limits_w() == [(300, 300), (250, 250)], "persistence mode keeps them without any client of the driver"
    assert bench.twin.read(0).locked_max_mhz is not None


def test_a_restart_takes_the_newest_grant_and_nothing_older(bench: AgentBench) -> None:
    bench.create()
    process = bench.start()
    bench.await_ack(bench.grant({0: 600, 1: 600}), (0, 1))
    bench.end(process, signal.SIGKILL)
    newer = bench.grant({0: 300, 1: 300})
    bench.start()
    bench.await_ack(newer, (0, 1))
    assert bench.limits_w() == [(300, 300)] * 2


def test_no_status_of_a_new_life_says_that_nothing_is_acknowledged(bench: AgentBench) -> None:
    """Grants changed while no agent ran, one way each. A status without an acknowledgement charges every GPU its default."""
    bench.create()
    process = bench.start()
    before = bench.grant({0: 400, 1: 400})
    bench.await_ack(before, (0, 1))
    bench.end(process, signal.SIGKILL)
    for gpu in (0, 1):
        bench.twin.set_fault(gpu, Fault.hang(seconds=0.7))
    after = bench.grant({0: 300, 1: 500})
    version = bench.object()["metadata"]["resourceVersion"]
    query = {"watch": "true", "fieldSelector": f"metadata.name={bench.node}", "resourceVersion": version}
    told: set[int] = set()
    with bench.plane.http.stream("GET", NODE_POWERS, params=query, timeout=60.0) as changes:
        bench.start()
        for line in changes.iter_lines():
            acked = [row["ackedGrant"] for row in json.loads(line)["object"]["status"]["gpus"]]
            told.update(acked)
            if acked == [after, after]:
                break
    assert told == {before, after}


def test_a_restart_without_an_api_server_only_lowers(crds: ControlPlane, bench: AgentBench) -> None:
    bench.create()
    process = bench.start()
    number = bench.grant({0: 500, 1: 500})
    bench.await_ack(number, (0, 1))
    bench.end(process, signal.SIGKILL)
    bench.twin.reset_gpu(0)  # back at its default limit of 700 W
    calls = bench.twin.read(1).setter_calls
    nowhere = bench.folder / "nowhere.kubeconfig"
    nowhere.write_text(crds.kubeconfig.read_text().replace(crds.url, "https://127.0.0.1:9"))
    process = bench.start("--kubeconfig", str(nowhere))
    eventually("the record lowers", lambda: bench.limits_w()[0] == (500, 500))
    assert bench.twin.read(1).setter_calls == calls
    bench.end(process, signal.SIGTERM)
    # A record that allows more than is set now must not raise.
    subprocess.run(
        [sys.executable, "-c", f"import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByUUID('{bench.twin.uuids[1]}'); "
         "n.nvmlDeviceSetPowerManagementLimit(h, 250000)"],
        check=True, env=bench.environment(),
    )  # fmt: skip
    process = bench.start("--kubeconfig", str(nowhere))
    eventually("it reads GPUs", lambda: bench.gpu_metric("splitwatt_gpu_power_watts", 1) is not None)
    time.sleep(2.0)
    assert bench.limits_w()[1] == (250, 250)
    bench.end(process, signal.SIGTERM)
    bench.start()
    eventually("with the object before it, the grant holds again", lambda: bench.limits_w() == [(500, 500)] * 2)
    bench.await_ack(number, (0, 1))


def test_a_second_agent_is_refused_in_one_sentence(bench: AgentBench) -> None:
    bench.create()
    first = bench.start()
    bench.await_ack(bench.grant({0: 400}), (0,))
    size = bench.log.stat().st_size
    second = bench.start()
    assert second.wait(timeout=30) == 1
    said = bench.log.read_bytes()[size:].decode().strip()
    assert f"another agent (process {first.pid}) holds" in said
    assert len([line for line in said.splitlines() if line.startswith("splitwatt-agent:")]) == 1
    assert "Traceback" not in said
    assert first.poll() is None


def test_a_recreated_object_voids_acknowledgements_and_holds_caps(bench: AgentBench) -> None:
    old = bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 300, 1: 300}), (0, 1))
    bench.delete()
    time.sleep(1.0)
    assert bench.limits_w() == [(300, 300)] * 2, "an absent object holds the caps"
    new = bench.create()
    eventually("the new object is spoken of", lambda: bench.object().get("status", {}).get("observedUID")
               == new["metadata"]["uid"])  # fmt: skip
    assert (bench.acked(0), bench.acked(1)) == (0, 0)
    # A restored spec speaks of the old object: ignored, though its numbers are higher.
    bench._round += 100
    bench.grant({0: 700, 1: 700}, term=2, for_uid=old["metadata"]["uid"])
    eventually("it is called wrong", lambda: bench.condition("Ready").get("reason") == "WrongUID")
    assert bench.limits_w() == [(300, 300)] * 2
    assert (bench.acked(0), bench.acked(1)) == (0, 0)
    number = bench.grant({0: 350, 1: 350}, term=2)
    bench.await_ack(number, (0, 1))


def test_a_lower_term_or_grant_is_refused_after_a_restart_too(bench: AgentBench) -> None:
    bench.create()
    process = bench.start()
    bench.await_ack(bench.grant({0: 300, 1: 300}, term=5), (0, 1))
    bench.end(process, signal.SIGKILL)
    bench.delete()
    uid = bench.create()["metadata"]["uid"]  # a new object escapes the API server's own fence
    bench.start()
    eventually("it is watched", lambda: bench.object().get("status", {}).get("observedUID") == uid)
    bench.grant({0: 700, 1: 700}, term=4)
    eventually("it is refused", lambda: bench.condition("Ready").get("reason") == "LowerTerm")
    time.sleep(1.0)
    assert bench.limits_w() == [(300, 300)] * 2
    assert json.loads((bench.state_dir / "record.json").read_text())["term"] == 5
    bench._round = 0
    stale = bench.grant({0: 700}, term=5)
    assert stale == 5 * GRANTS_PER_TERM + 1
    time.sleep(1.0)
    assert bench.limits_w()[0] == (300, 300), "the number was used before, for another cap"
    bench.await_ack(bench.grant({0: 280, 1: 280}, term=5), (0, 1))


def test_a_reboot_under_the_agent_starts_over(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    number = bench.grant({0: 300, 1: 300})
    bench.await_ack(number, (0, 1))
    bench.boot_id_file.write_text("boot-2\n")
    bench.twin.reboot("boot-2", index_order=[1, 0])
    eventually("the new boot is reported", lambda: bench.object()["status"]["bootID"] == "boot-2")
    bench.await_ack(number, (0, 1))
    assert bench.limits_w() == [(300, 300)] * 2
    assert all(truth.persistence for truth in bench.twin.read_all())


def test_a_driver_reload_starts_over_within_the_same_boot(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    number = bench.grant({0: 300, 1: 250})
    bench.await_ack(number, (0, 1))
    bench.twin.reboot("boot-1")
    eventually("caps are set again", lambda: bench.limits_w() == [(300, 300), (250, 250)])
    bench.await_ack(number, (0, 1))


def test_a_gpu_that_is_lost_at_the_start_stays_on_the_books(bench: AgentBench) -> None:
    bench.create()
    process = bench.start()
    first = bench.grant({0: 500, 1: 500})
    bench.await_ack(first, (0, 1))
    bench.end(process, signal.SIGTERM)
    bench.twin.set_fault(0, Fault.gpu_lost())
    bench.start()
    second = bench.grant({0: 400, 1: 400})
    bench.await_ack(second, (1,))
    line = bench.line(0)
    assert (line["health"], line["ackedGrant"], line["defaultCapWatts"]) == ("Lost", 0, 700)
    assert "managementCapWatts" not in line
    bench.twin.clear_faults(0)
    bench.await_ack(second, (0, 1))


def test_a_gpu_that_never_said_who_it_is_stands_in_by_its_index(bench: AgentBench) -> None:
    bench.create()
    bench.twin.set_fault(0, Fault.gpu_lost())
    bench.start()
    number = bench.grant({1: 400})
    bench.await_ack(number, (1,))
    rows = {row["uuid"]: row for row in bench.object()["status"]["gpus"]}
    stand_in = rows["unreadable-index-0"]
    assert (stand_in["health"], stand_in["defaultCapWatts"], stand_in["ackedGrant"]) == ("Lost", 700, 0)
    bench.twin.clear_faults(0)
    eventually("it has a name now", lambda: bench.line(0).get("health") == "OK")
    assert len(bench.object()["status"]["gpus"]) == 2
    bench.await_ack(number, (1,))


def test_a_gpu_that_hangs_as_the_agent_starts_leaves_its_neighbour_governed(bench: AgentBench) -> None:
    bench.create()
    bench.twin.set_fault(0, Fault.hang(Call.IDENTITY))
    bench.start()
    number = bench.grant({0: 400, 1: 400})
    bench.await_ack(number, (1,))
    rows = {row["uuid"]: row for row in bench.object()["status"]["gpus"]}
    assert (rows["unreadable-index-0"]["health"], rows["unreadable-index-0"]["defaultCapWatts"]) == ("Hung", 700)
    bench.twin.clear_faults(0)
    bench.await_ack(number, (0, 1))


def test_a_node_all_of_whose_gpus_are_lost_at_its_first_start_is_charged_and_looked_at_again(bench: AgentBench) -> None:
    bench.create()
    for gpu in (0, 1):
        bench.twin.set_fault(gpu, Fault.gpu_lost())
    bench.start()
    lines: Any = eventually("they are told", lambda: (bench.object().get("status") or {}).get("gpus"))
    assert [(line["uuid"], line["health"], line["defaultCapWatts"]) for line in lines] == [
        ("unreadable-index-0", "Lost", 1400),
        ("unreadable-index-1", "Lost", 1400),
    ]
    for gpu in (0, 1):
        bench.twin.clear_faults(gpu)
    bench.twin.reboot("boot-1")  # another driver load: no reading of these GPUs could have told it
    bench.await_ack(bench.grant({0: 300, 1: 300}), (0, 1))
    assert len(bench.object()["status"]["gpus"]) == 2


def test_caps_hold_and_lower_while_the_api_server_is_gone(crds: ControlPlane, bench: AgentBench) -> None:
    bench.create()
    bench.start()
    number = bench.grant({0: 300, 1: 300})
    bench.await_ack(number, (0, 1))
    crds.stop(Component.API_SERVER)
    try:
        bench.twin.reset_gpu(0)
        eventually("the cap is put right without Kubernetes", lambda: bench.limits_w()[0] == (300, 300))
        assert bench.gpu_metric("splitwatt_gpu_power_watts", 1) is not None
        eventually("the watch is known to be dead", lambda: list(bench.metrics()["splitwatt_agent_watch_live"].values()) == [0])
    finally:
        crds.start(Component.API_SERVER)
    bench.await_ack(bench.grant({0: 280, 1: 280}), (0, 1))


def test_in_steady_state_only_signs_of_life_are_written(bench: AgentBench) -> None:
    """With a sign of life each four seconds; that the agent's own is a minute apart stands in test_status_times.py."""
    bench.create()
    bench.start(program=[sys.executable, str(HURRIED_AGENT), str(HURRIED_S)])
    bench.await_ack(bench.grant({0: 300, 1: 300}), (0, 1))
    eventually("it has settled", lambda: bench.condition("CapsEnforced").get("reason") == "ReadBack")

    def writes() -> float:
        return sum(bench.metrics()["splitwatt_agent_status_writes_total"].values())

    time.sleep(HURRIED_S)  # what settles late is told by now
    begun, before, version = time.monotonic(), writes(), bench.object()["metadata"]["resourceVersion"]
    eventually("signs of life", lambda: writes() - before >= 2)
    assert writes() - before <= 1 + (time.monotonic() - begun) / HURRIED_S
    assert bench.object()["metadata"]["resourceVersion"] != version


def test_workloads_come_from_kubelet_and_outlive_its_silence(bench: AgentBench) -> None:
    socket_path = bench.folder / "kubelet.sock"
    kubelet = bench.kubelet(socket_path, {("serving", "chat-decode-0"): (0,)})
    bench.create()
    bench.start("--pod-resources", f"unix:{socket_path}")
    bench.await_ack(bench.grant({0: 400, 1: 300}), (0, 1))
    eventually("the pod is named", lambda: bench.line(0).get("workload") == {"namespace": "serving", "pod": "chat-decode-0"})
    assert "workload" not in bench.line(1)
    kubelet.kill()
    kubelet.wait()
    eventually("silence is seen", lambda: list(bench.metrics()["splitwatt_agent_pod_resources_up"].values()) == [0])
    eventually("and told", lambda: bench.condition("Ready").get("reason") == "WorkloadsStale")
    assert bench.line(0)["workload"]["pod"] == "chat-decode-0", "no answer does not mean that the GPU is free"


def test_a_kubelet_that_lives_elsewhere_stops_no_cap_and_is_told_by_the_values_name(bench: AgentBench) -> None:
    bench.create()
    bench.start("--pod-resources", f"unix:{bench.folder}/nowhere/kubelet.sock")
    bench.await_ack(bench.grant({0: 400, 1: 300}), (0, 1))
    eventually("it is told", lambda: "agent.podResourcesDir" in bench.condition("Ready").get("message", ""))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--listen", "9402"), "--listen must be HOST:PORT"),
        (("--sample-hz", "0"), "--sample-hz must be from 0.1 to 20"),
        (("--pod-resources", "/run/kubelet.sock"), "--pod-resources must be unix:PATH or empty"),
        (("--boot-id-file", "/nowhere"), "--boot-id-file /nowhere is not a file"),
        (("--kubeconfig", "/nowhere"), "cannot use kubeconfig /nowhere"),
    ],
)
def test_bad_arguments_get_one_sentence(bench: AgentBench, arguments: tuple[str, ...], said: str) -> None:
    process = bench.start(*arguments)
    assert process.wait(timeout=60) in (1, 2)
    text = bench.log.read_text()
    assert said in text
    assert "Traceback" not in text


def test_a_port_in_use_is_one_sentence(bench: AgentBench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = bench.start("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert process.wait(timeout=60) == 1
    assert "cannot listen on 127.0.0.1:" in bench.log.read_text()
    assert "Traceback" not in bench.log.read_text()


def test_a_node_without_a_driver_says_so_and_waits(bench: AgentBench) -> None:
    bench.create()
    bench.start(env={"LD_LIBRARY_PATH": ""})
    bench.grant({0: 300})
    condition: Any = eventually("it is told", lambda: (c := bench.condition("Ready")).get("reason") == "NVMLUnavailable" and c)
    assert "LIBRARY_NOT_FOUND" in condition["message"]
    assert "set agent.runtimeClassName" in condition["message"] and "agent.driverLibraryDir" in condition["message"]
    assert "set agent.runtimeClassName" in bench.log.read_text()
