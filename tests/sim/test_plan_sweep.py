"""A sweep in a cluster: a real API server takes its objects, a real Job controller makes its pods, and what those pods are told
to run, run here by processes of their own, gives the plan of a local search. Nodes are kwok's: no pod runs there."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitwatt_cli.main import main
from splitwatt_core.gpus import profiles
from splitwatt_lab import nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.nodes import NodeSpec
from splitwatt_sim.servers.catalogue import MODEL_2026
from splitwatt_sim.servers.profile_files import profile_object, read_profile_file
from splitwatt_sim.servers.table_files import DecodeRow, PrefillRow, TimingTable, write_neutral_csv
from splitwatt_sim.servers.tables import GIB
from splitwatt_sim.traces.resample import generated

SHARDS = 3
INDEX = "batch.kubernetes.io/job-completion-index"
FILES = ("plan.json", "plan.png", "plan.yaml", "profiles.yaml")
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """A namespace with the strictest Pod Security, and a node."""
    control_plane.kubectl("label", "namespace", namespace, RESTRICTED)
    node = NodeSpec(f"sweep-{os.getpid()}")
    nodes.create(control_plane, [node])
    yield namespace
    nodes.delete(control_plane, [node.name])
    control_plane.kubectl("delete", "persistentvolume", namespace, "--ignore-not-found", "--wait=false")


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """A trace that goes along compressed, a profile and a table of one's own."""
    sizes = generated(requests_per_s=50.0, seconds=120.0, seed=4)
    rows = zip(sizes.arrival_s.tolist(), sizes.prompt_tokens.tolist(), sizes.output_tokens.tolist(), strict=True)
    lines = [f"{i},{at!r},{prompt},{output}" for i, (at, prompt, output) in enumerate(rows)]
    trace, own, times = tmp_path / "conv.csv", tmp_path / "x1.yaml", tmp_path / "x1.csv"
    trace.write_text("\n".join(["request_id,arrival_timestamp,prompt_size,token_size", *lines, ""]), encoding="utf-8")
    h100 = next(profile for profile in profiles.builtin() if profile.name == "H100-SXM")
    mine = replace(h100, name="x1", product_names=("Example X1",), timing=None)
    own.write_text(yaml.safe_dump(profile_object(mine, memory_bytes=96 * GIB)), encoding="utf-8")
    table = TimingTable(
        "Example X1", MODEL_2026, 8,
        tuple(PrefillRow(n, 3 + n / 30) for n in (1, 512, 2048, 8192)),
        tuple(DecodeRow(b, c, 11 + b / 30 + b * c / 3e6) for b in (1, 32, 256) for c in (1024, 4096)),
    )  # fmt: skip
    with times.open("w", encoding="utf-8", newline="") as file:
        write_neutral_csv([table], file)
    files = ["--requests", str(trace), "--profile", str(own), "--profile", str(times)]
    return ["plan", *files, "--servers", "3", "--seconds", "20", "--step", "20", "--check", "1"]


def get(plane: ControlPlane, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(plane.kubectl("get", *arguments, "-o", "json").stdout)
    return answer


def bind(plane: ControlPlane, namespace: str) -> None:
    """Give the claim a volume, as a cluster's binder would; the lab's controller-manager runs none."""
    (claim,) = get(plane, "persistentvolumeclaim", "-n", namespace)["items"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "pods on many nodes write there"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": namespace},
        "spec": {
            "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteMany"],
            "nfs": {"server": "127.0.0.1", "path": "/"},
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim["metadata"]["name"],
                         "uid": claim["metadata"]["uid"]},
        },
    }  # fmt: skip
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(volume))
    bound = {"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": namespace}}
    patch = ("patch", "persistentvolumeclaim", claim["metadata"]["name"], "-n", namespace, "--type=merge", "-p")
    plane.kubectl(*patch, json.dumps(bound))
    plane.kubectl(*patch, json.dumps({"status": {"phase": "Bound"}}), "--subresource=status")


def kubectl_lines(said: str) -> list[list[str]]:
    """The commands to type next, each as its two steps."""
    return [line.split(" && ", 1) for line in said.splitlines() if line.startswith("kubectl")]


def in_shell(plane: ControlPlane, command: str, tmp_path: Path) -> str:
    """What a command says that is typed where kubectl speaks to this control plane."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "kubectl").symlink_to(plane.tools["kubectl"])
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "KUBECONFIG": str(plane.kubeconfig), "HOME": str(tmp_path)}
    return subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, timeout=90, check=True).stdout


def test_pods_of_a_real_job_find_the_plan_of_a_local_search(
    control_plane: ControlPlane, place: str, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*asked, "--on-kubernetes", "--shards", str(SHARDS), "--namespace", place, "--out", str(out)]) == 0
    (apply_line, wait), (copy_line, merge_line) = kubectl_lines(capsys.readouterr().out)
    apply, copy, merge = (shlex.split(line) for line in (apply_line, copy_line, merge_line))
    dry = control_plane.kubectl(*apply[1:], "--dry-run=server")
    assert dry.stderr == "" and all(kind in dry.stdout for kind in ("configmap/", "persistentvolumeclaim/", "job.batch/", "pod/"))

    control_plane.kubectl(*apply[1:])
    bind(control_plane, place)
    ended = in_shell(control_plane, wait, tmp_path)
    assert ended.split()[-1] == "Complete"
    pods = get(control_plane, "pods", "-n", place, f"-l={INDEX}")["items"]
    assert sorted(int(pod["metadata"]["annotations"][INDEX]) for pod in pods) == list(range(SHARDS))

    config = get(control_plane, "configmap", "-n", place, "-l=app.kubernetes.io/name=splitwatt-plan")["items"][0]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for key, text in config["data"].items():
        (inputs / key).write_text(text, encoding="utf-8")
    for key, packed in config["binaryData"].items():
        (inputs / key).write_bytes(base64.b64decode(packed))
    for pod in pods:
        run_as(pod, {"/inputs": inputs, "/shards": tmp_path / "claim"})

    _, folder = copy[-2].split(":")
    (tmp_path / "claim" / Path(folder).name).replace(copy[-1])
    assert main([*merge[1:]]) == 0
    assert main([*asked, "--namespace", place, "--jobs", "1", "--out", str(tmp_path / "local")]) == 0
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name


def run_as(pod: dict[str, Any], mounts: dict[str, Path]) -> None:
    """The pod's command, with what the kubelet would put in: its index, and its mounts, which are elsewhere here."""
    (container,) = pod["spec"]["containers"]
    (index,) = [e for e in container["env"] if e["name"] == "JOB_COMPLETION_INDEX"]
    assert INDEX in index["valueFrom"]["fieldRef"]["fieldPath"], "from which the kubelet takes it"
    assert {m["mountPath"] for m in container["volumeMounts"]} == {*mounts, "/tmp"}
    line = [part.replace("$(JOB_COMPLETION_INDEX)", pod["metadata"]["annotations"][INDEX]) for part in container["args"]]
    for path, here in mounts.items():
        line = [part.replace(path, str(here), 1) if part.startswith(f"{path}/") else part for part in line]
    assert container["command"] == ["splitwatt"]
    subprocess.run([sys.executable, "-m", "splitwatt_cli.main", *line], check=True, timeout=240, capture_output=True)


def test_a_profile_with_times_and_memory_goes_through_a_cluster_and_back(crds: ControlPlane, tmp_path: Path) -> None:
    h100 = next(profile for profile in profiles.builtin() if profile.name == "H100-SXM")
    mine = replace(h100, name=f"x-{os.getpid()}", product_names=("Example X1",))
    crds.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(profile_object(mine, memory_bytes=96 * GIB)))
    try:
        path = tmp_path / "cluster.yaml"
        path.write_text(crds.kubectl("get", "powerprofile", mine.name, "-o", "yaml").stdout, encoding="utf-8")
        (given,) = read_profile_file(path).profiles
    finally:
        crds.kubectl("delete", "powerprofile", mine.name)
    assert given.memory_bytes == 96 * GIB and given.profile.timing == h100.timing
    assert replace(given.profile, sources={}) == replace(mine, sources={})
