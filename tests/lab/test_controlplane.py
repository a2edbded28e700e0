"""The control plane is real, whole, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from splitwatt_lab import nodes, ports
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError, PortInUseError
from splitwatt_lab.nodes import NodeSpec
from splitwatt_lab.toolchain import ASSETS_VARIABLE, STAGES_FOLDER
from support.some import some
from support.waiting import eventually

WAIT_S = 60.0


@pytest.fixture
def rack(control_plane: ControlPlane) -> Iterator[list[NodeSpec]]:
    specs = [NodeSpec(f"cp-{os.getpid()}-{i}", rack="cp", pool="cp") for i in range(3)]
    nodes.create(control_plane, specs)
    yield specs
    nodes.delete(control_plane, [spec.name for spec in specs])


def gpu_deployment(namespace: str, *, replicas: int) -> str:
    labels = {"app": "gpus"}
    container = {"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "gpus", "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "nodeSelector": {"splitwatt.io/pool": "cp"}},
            },
        },
    }
    return json.dumps(manifest)


def get(plane: ControlPlane, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(plane.kubectl("get", *arguments, "-o", "json").stdout)
    return answer


# ------------------------------------------------------------------------------------------------------------ it works


def test_every_component_is_ready(control_plane: ControlPlane) -> None:
    assert control_plane.kubectl("get", "--raw", "/readyz").stdout == "ok"
    assert all(control_plane.running(component) for component in Component)
    assert "v1.37" in json.loads(control_plane.kubectl("version", "-o", "json").stdout)["serverVersion"]["gitVersion"]


def test_a_deployment_of_gpu_pods_becomes_ready_and_the_scheduler_counts_gpus(
    control_plane: ControlPlane, rack: list[NodeSpec], namespace: str
) -> None:
    control_plane.kubectl("create", "-f", "-", stdin=gpu_deployment(namespace, replicas=3))
    control_plane.kubectl("rollout", "status", "deployment/gpus", "-n", namespace, f"--timeout={WAIT_S:g}s")
    placed = {pod["spec"]["nodeName"] for pod in get(control_plane, "pods", "-n", namespace)["items"]}
    assert placed == {spec.name for spec in rack}, "three pods of eight GPUs must take three nodes of eight"

    control_plane.kubectl("scale", "deployment/gpus", "--replicas=4", "-n", namespace)
    events = ["events", "-n", namespace, "--field-selector", "reason=FailedScheduling"]
    eventually("the fourth pod is refused", lambda: "Insufficient nvidia.com/gpu" in json.dumps(get(control_plane, *events)))


def test_owned_objects_budgets_services_and_namespaces_are_looked_after(
    control_plane: ControlPlane, rack: list[NodeSpec], make_namespace: Callable[[], str]
) -> None:
    namespace = make_namespace()
    control_plane.kubectl("create", "-f", "-", stdin=gpu_deployment(namespace, replicas=2))
    control_plane.kubectl("expose", "deployment/gpus", "--port=80", "-n", namespace)
    control_plane.kubectl("create", "pdb", "gpus", "--selector=app=gpus", "--min-available=1", "-n", namespace)

    def served() -> bool:
        slices = get(control_plane, "endpointslices", "-n", namespace)["items"]
        return sum(len(s.get("endpoints") or ()) for s in slices) == 2

    eventually("two endpoints", served)
    eventually(
        "one disruption allowed",
        lambda: get(control_plane, "pdb", "gpus", "-n", namespace)["status"].get("disruptionsAllowed") == 1,
    )
    control_plane.kubectl("delete", "deployment", "gpus", "-n", namespace)
    eventually("the pods are collected", lambda: not get(control_plane, "pods", "-n", namespace)["items"])
    control_plane.kubectl("delete", "namespace", namespace, f"--timeout={WAIT_S:g}s")


def test_nodes_carry_their_labels_gpus_boot_and_a_fresh_lease(control_plane: ControlPlane, rack: list[NodeSpec]) -> None:
    spec = rack[0]
    node = get(control_plane, "node", spec.name)
    assert node["metadata"]["labels"]["splitwatt.io/rack"] == "cp"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert node["status"]["nodeInfo"]["bootID"] == spec.boot_id

    def leased() -> bool:  # kwok writes a node's Lease a moment after the node is ready
        found = control_plane.kubectl("get", "lease", spec.name, "-n", "kube-node-lease", "-o", "json", check=False)
        return found.returncode == 0 and bool(json.loads(found.stdout)["spec"]["renewTime"])

    eventually("its lease is renewed", leased)

    boot_id = nodes.reboot(control_plane, spec.name)
    nodes.set_labels(control_plane, spec.name, {"splitwatt.io/rack": "other", "splitwatt.io/pool": None})
    node = get(control_plane, "node", spec.name)
    assert node["status"]["nodeInfo"]["bootID"] == boot_id != spec.boot_id
    assert node["metadata"]["labels"]["splitwatt.io/rack"] == "other"
    assert "splitwatt.io/pool" not in node["metadata"]["labels"]


def test_a_bound_token_names_its_node_and_has_only_its_accounts_rights(
    control_plane: ControlPlane, rack: list[NodeSpec], namespace: str
) -> None:
    kubeconfig = control_plane.token_kubeconfig(namespace, "default", node=rack[0].name)
    as_account = ("--kubeconfig", str(kubeconfig))
    who = json.loads(control_plane.kubectl(*as_account, "auth", "whoami", "-o", "json").stdout)["status"]["userInfo"]
    assert who["username"] == f"system:serviceaccount:{namespace}:default"
    assert who["extra"]["authentication.kubernetes.io/node-name"] == [rack[0].name]
    refused = control_plane.kubectl(*as_account, "get", "nodes", check=False)
    assert refused.returncode != 0 and "Forbidden" in refused.stderr

    unbound = control_plane.token_kubeconfig(namespace, "default")
    who = json.loads(control_plane.kubectl("--kubeconfig", unbound, "auth", "whoami", "-o", "json").stdout)
    assert "authentication.kubernetes.io/node-name" not in who["status"]["userInfo"].get("extra", {})

    with pytest.raises(LabError, match="not found"):
        control_plane.token_kubeconfig(namespace, "nobody")


def test_nobody_without_a_certificate_of_etcds_authority_reaches_etcd(control_plane: ControlPlane) -> None:
    with pytest.raises(httpx.TransportError, match="certificate required"):
        httpx.get(f"https://127.0.0.1:{control_plane.port(Component.ETCD)}/version", verify=False)


# ------------------------------------------------------------------------------------------------------ single components


@pytest.mark.parametrize("component", list(Component))
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_each_component_goes_and_comes_back_and_the_rest_carries_on(
    control_plane: ControlPlane, rack: list[NodeSpec], namespace: str, component: Component, how: str
) -> None:
    others = {c: control_plane.pid(c) for c in Component if c is not component}
    control_plane.kubectl("create", "-f", "-", stdin=gpu_deployment(namespace, replicas=1))
    getattr(control_plane, how)(component)
    try:
        assert not control_plane.running(component)
        assert ports.is_free(control_plane.port(component))
    finally:
        control_plane.start(component)
    assert control_plane.running(component)
    assert others == {c: control_plane.pid(c) for c in others if control_plane.running(c)}, "the others must not restart"
    control_plane.kubectl("scale", "deployment/gpus", "--replicas=3", "-n", namespace)
    control_plane.kubectl("rollout", "status", "deployment/gpus", "-n", namespace, f"--timeout={WAIT_S:g}s")


def test_the_api_server_stops_at_once_while_watches_are_open(control_plane: ControlPlane) -> None:
    with control_plane.http.stream("GET", "/api/v1/nodes", params={"watch": "1"}, timeout=WAIT_S) as watch:
        assert watch.status_code == 200
        control_plane.stop("kube-apiserver")
    try:
        with pytest.raises(LabError, match=r"GET /api/v1/nodes/any failed: .*kube-apiserver\.log"):
            control_plane.token_kubeconfig("default", "default", node="any")
    finally:
        control_plane.start("kube-apiserver")


def test_a_component_whose_port_was_taken_meanwhile_says_so(control_plane: ControlPlane) -> None:
    port = control_plane.port("kube-scheduler")
    control_plane.stop("kube-scheduler")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUseError, match=rf"port {port} .*is in use"):
        control_plane.start("kube-scheduler")
    control_plane.start("kube-scheduler")


# -------------------------------------------------------------------------------------------------------- nothing remains

OWNER = """
import json, os, signal, sys, time
from splitwatt_lab.controlplane import ControlPlane

# A test run in the background of a shell inherits an ignored SIGINT; a person's terminal does not.
signal.signal(signal.SIGINT, signal.default_int_handler)

with ControlPlane() as plane:
    supervisor = plane.group.supervisor_pid
    print(json.dumps({"directory": str(plane.directory), "supervisor": supervisor, "ports": plane.ports()}), flush=True)
    if sys.argv[1] == "crash":
        os.abort()
    time.sleep(3600)
"""


def start_owner(how: str) -> tuple[subprocess.Popen[str], dict[str, Any], list[psutil.Process]]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, how], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert owner.stdout is not None
    facts = json.loads(owner.stdout.readline())
    supervisor = psutil.Process(facts["supervisor"])
    return owner, facts, [supervisor, *supervisor.children(recursive=True)]


def assert_nothing_remains(facts: Mapping[str, Any], processes: list[psutil.Process]) -> None:
    assert len(processes) >= 1
    _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert all(ports.is_free(port) for port in some(facts["ports"].values()))
    assert not Path(facts["directory"]).exists(), "a control plane without a directory of its own leaves no file"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_no_port_and_no_file_outlives_an_owner_ended_by_a_signal(number: signal.Signals) -> None:
    owner, facts, processes = start_owner("wait")
    assert len(processes) == 1 + len(Component)
    # To the whole process group, as a terminal sends Ctrl-C.
    os.killpg(owner.pid, number)
    owner.wait(WAIT_S)
    assert_nothing_remains(facts, processes)


def test_nothing_outlives_an_owner_that_crashed() -> None:
    owner, facts, processes = start_owner("crash")
    assert owner.wait(WAIT_S) == -signal.SIGABRT
    assert_nothing_remains(facts, processes)


def test_nothing_outlives_a_killed_supervisor() -> None:
    owner, facts, processes = start_owner("wait")
    os.kill(facts["supervisor"], signal.SIGKILL)
    _, alive = psutil.wait_procs(processes[1:], timeout=WAIT_S)
    assert not alive
    owner.kill()
    owner.wait(WAIT_S)
    assert all(ports.is_free(port) for port in some(facts["ports"].values()))
    shutil.rmtree(facts["directory"])


def test_a_port_in_use_is_one_sentence_and_nothing_is_started() -> None:
    before = set(psutil.Process().children(recursive=True))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"port {port} on 127\.0\.0\.1.*choose another"):
            ControlPlane(port=port).__enter__()
    assert set(psutil.Process().children(recursive=True)) == before


def test_a_free_port_taken_at_the_last_moment_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        offered = iter([taken.getsockname()[1]])
        choose = ports.free_port
        monkeypatch.setattr("splitwatt_lab.servers.free_port", lambda: next(offered, None) or choose())
        with ControlPlane(tmp_path) as plane:
            assert plane.port("etcd") != taken.getsockname()[1]
            assert plane.kubectl("get", "--raw", "/readyz").stdout == "ok"


def test_a_failing_component_is_named_with_its_log_and_nothing_remains(tmp_path: Path, control_plane: ControlPlane) -> None:
    broken = tmp_path / "kube-scheduler"
    broken.write_text("#!/bin/sh\necho 'fatal: the moon is in the wrong phase' >&2\nexit 3\n")
    broken.chmod(0o755)
    tools = control_plane.tools
    tools = type(tools)({**tools.paths, "kube-scheduler": broken}, tools.stages)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(LabError) as failure:
        ControlPlane(tmp_path / "plane", tools=tools).__enter__()
    sentence = str(failure.value)
    assert "kube-scheduler ended with code 3" in sentence and "wrong phase" in sentence
    assert str(tmp_path / "plane" / "logs" / "kube-scheduler.log") in sentence and "\n" not in sentence
    assert set(psutil.Process().children(recursive=True)) == before


def test_a_second_control_plane_of_kubebuilder_assets_lives_beside_the_first(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    (assets / STAGES_FOLDER).mkdir(parents=True)
    for path in control_plane.tools.paths.values():
        (assets / path.name).symlink_to(path)
    for stage in control_plane.tools.stages:
        (assets / STAGES_FOLDER / stage.name).symlink_to(stage)
    monkeypatch.setenv(ASSETS_VARIABLE, str(assets))
    # A proxy of the environment must not get between the lab and its own loopback.
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with ControlPlane(tmp_path / "plane") as plane:
        commands = {component: psutil.Process(plane.pid(component)).cmdline()[0] for component in Component}
        assert commands == {component: str(assets / component.value) for component in Component}
        assert set(plane.ports().values()).isdisjoint(control_plane.ports().values())
        assert plane.kubectl("get", "--raw", "/readyz").stdout == "ok"
        assert control_plane.kubectl("get", "--raw", "/readyz").stdout == "ok"


def test_the_kubeconfig_is_yaml_that_any_client_reads(control_plane: ControlPlane) -> None:
    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    assert config["clusters"][0]["cluster"]["server"] == control_plane.url
    assert control_plane.kubeconfig.stat().st_mode & 0o077 == 0, "keys are for their owner alone"
