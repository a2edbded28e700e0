"""The life of a release on a cluster that enforces `restricted` and guards the critical classes: installed by the page's own
words, upgraded from the chart before, rolled back, uninstalled, installed again under another name. Pods by the real controllers.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core.protocol.contract import GpuStatus, Health, Status, status_to_wire
from splitwatt_lab import nodes
from splitwatt_lab.install import NAMESPACE
from support.some import some
from support.waiting import eventually

from .conftest import CHART, PATIENCE_S, REGISTRY, GuardedPlane

ROOT = CHART.parents[1]
KINDS = ("powerbudgets", "nodepowers", "powerprofiles", "crd")
BEFORE = "142cabf"
"""The last commit whose chart made PowerProfiles by a hook."""
EDIT = '{"spec":{"idleWatts":91}}'


def blocks(page: str) -> list[str]:
    """The page's shell commands, block by block."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def block(page: str, begins: str) -> str:
    """The page's block of commands that begins so. More than one: the first."""
    return next(text for text in blocks(page) if text.startswith(begins))


def objects(plane: GuardedPlane, kind: str, *more: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(plane.kubectl("get", kind, "-o", "json", *more).stdout)["items"]
    return items


@pytest.fixture
def plane(guarded: GuardedPlane) -> Iterator[GuardedPlane]:
    yield guarded
    # Nodes are objects alone here: no kubelet says of a pod that was bound to one that it ended, which uninstalling waits for.
    guarded.kubectl("delete", "nodes", "--all", timeout_s=PATIENCE_S)
    guarded.kubectl("delete", "pods", "--all", "-n", NAMESPACE, "--force", "--grace-period=0", timeout_s=PATIENCE_S)
    # Cluster-wide names are few: each test leaves none of them behind.
    for release in json.loads(guarded.shell("helm list -A -o json").stdout):
        guarded.shell(f"helm uninstall {release['name']} -n {release['namespace']}")
    ours = [crd["metadata"]["name"] for crd in objects(guarded, "crd") if crd["spec"]["group"] == "splitwatt.io"]
    if ours:
        guarded.kubectl("delete", "crd", *ours, timeout_s=PATIENCE_S)
    guarded.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_s=PATIENCE_S)


def run(plane: GuardedPlane, commands: str) -> subprocess.CompletedProcess[str]:
    result = plane.shell(commands)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


# ------------------------------------------------------------------------------------------------------------- install


def test_the_readmes_words_start_pods_where_restricted_is_enforced_and_gpu_nodes_are_tainted(plane: GuardedPlane) -> None:
    labels = {"nvidia.com/gpu.present": "true"}
    nodes.create(plane, [nodes.NodeSpec(name="gpu-1", labels=labels, boot_id=nodes.new_boot_id())])
    plane.kubectl("taint", "node", "gpu-1", "team=a:NoSchedule")
    nodes.create(plane, [nodes.NodeSpec(name="cpu-1", labels={}, boot_id=nodes.new_boot_id())])
    typed = block("README.md", "kubectl apply -f helm/namespace.yaml")
    assert typed == block("docs/install.md", "kubectl apply -f helm/namespace.yaml")
    run(plane, typed)

    def placed() -> dict[str, str]:
        found = objects(plane, "pods", "-n", NAMESPACE)
        return {p["metadata"]["labels"]["app.kubernetes.io/component"]: p["spec"].get("nodeName", "") for p in found}

    eventually("both have pods where they belong", lambda: placed() == {"agent": "gpu-1", "operator": "cpu-1"})
    # The same pods in a namespace that nobody prepared show that this cluster does enforce both.
    plane.kubectl("create", "namespace", "unprepared")
    for kind, says in (("daemonset/splitwatt-agent", "violates PodSecurity"), ("deployment/splitwatt-operator", "quota")):
        template = json.loads(plane.kubectl("get", kind, "-n", NAMESPACE, "-o", "json").stdout)["spec"]["template"]
        template["spec"]["serviceAccountName"] = "default"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "unprepared"}, "spec": template["spec"]}
        refused = plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod), check=False)
        assert refused.returncode != 0 and says in refused.stderr


# ------------------------------------------------------------------------------------------------------------- upgrade


@pytest.fixture
def chart_before(tmp_path: Path) -> Path:
    """The chart of `BEFORE`, from the repository's own history."""
    archive = subprocess.run(["git", "archive", BEFORE, "helm/splitwatt"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"this clone has no commit {BEFORE}: git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "helm" / "splitwatt"


def kept(plane: GuardedPlane) -> dict[str, str]:
    """UIDs of all that must outlive whatever happens to a release."""
    found = {
        f"{kind}/{item['metadata']['name']}": item["metadata"]["uid"]
        for kind in KINDS
        for item in objects(plane, kind)
        if kind != "crd" or item["spec"]["group"] == "splitwatt.io"
    }
    assert {key.partition("/")[0] for key in found} == set(KINDS)
    return found


def edited(plane: GuardedPlane) -> bool:
    return plane.kubectl("get", "powerprofile", "h100-sxm", "-o", "jsonpath={.spec.idleWatts}").stdout == "91"


def fill(plane: GuardedPlane) -> None:
    """Budgets, and a node that an agent has told of."""
    plane.kubectl("apply", "-f", ROOT / "examples" / "budgets.yaml")
    power = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": "gpu-1"}}
    plane.kubectl("create", "-f", "-", stdin=json.dumps(power))
    gpu = GpuStatus(
        uuid="GPU-1", health=Health.OK, model="NVIDIA H100 80GB HBM3", acked_grant=0, management_w=400, enforced_w=400,
        min_w=200, max_w=700, default_w=700,
    )  # fmt: skip
    status = {"status": status_to_wire(Status(observed_term=1, gpus=(gpu,)))}
    plane.kubectl("patch", "np", "gpu-1", "--subresource=status", "--type=merge", "-p", json.dumps(status))


def versions(plane: GuardedPlane) -> dict[str, str]:
    """Generations of what the release holds."""
    found = [*objects(plane, "deployments,daemonsets", "-n", NAMESPACE), *objects(plane, "crd")]
    return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["generation"] for o in some(found)}


def nothing_lost(plane: GuardedPlane, before: dict[str, str]) -> bool:
    """All that was there is there, the very same, and nothing has come but definitions that the chart before did not have."""
    now = kept(plane)
    return before.items() <= now.items() and now.keys() - before.keys() <= {"crd/rolescales.splitwatt.io"}


def test_nothing_is_lost_from_the_chart_before_to_another_release_name(plane: GuardedPlane, chart_before: Path) -> None:
    old = " ".join(f"--set {part}.image.repository={REGISTRY}/splitwatt-{part}" for part in ("operator", "agent"))
    run(plane, f"kubectl apply -f helm/namespace.yaml; helm install splitwatt {chart_before} -n {NAMESPACE} {old}")
    fill(plane)
    plane.kubectl("patch", "powerprofile", "h100-sxm", "--type=merge", "-p", EDIT)
    before = kept(plane)

    # With the old release's values alone, as --reuse-values has it, and then by the page's words.
    run(plane, f"helm upgrade splitwatt helm/splitwatt -n {NAMESPACE} --reuse-values")
    assert nothing_lost(plane, before) and edited(plane)
    agent = json.loads(plane.kubectl("get", "ds", "splitwatt-agent", "-n", NAMESPACE, "-o", "json").stdout)["spec"]["template"]
    assert agent["spec"]["nodeSelector"] == {"nvidia.com/gpu.present": "true"} and "affinity" not in agent["spec"]
    assert agent["spec"]["containers"][0]["image"] == f"{REGISTRY}/splitwatt-agent:0.1.0"
    typed = block("docs/install.md", "kubectl apply -f helm/namespace.yaml")
    run(plane, typed)
    assert nothing_lost(plane, before) and edited(plane)
    there = versions(plane)
    run(plane, typed)
    assert versions(plane) == there, "the same words twice change nothing"

    run(plane, f"helm rollback splitwatt 1 -n {NAMESPACE}")
    assert nothing_lost(plane, before) and edited(plane)
    run(plane, typed)

    # Gone, with all that counts kept, and the way back to default limits as the page has it.
    run(plane, block("docs/install.md", "helm uninstall"))
    assert nothing_lost(plane, before) and edited(plane)
    assert not objects(plane, "clusterroles", "-l", "app.kubernetes.io/name=splitwatt")
    printed = run(plane, block("docs/install.md", "kubectl get nodepowers -o go-template")).stdout
    assert printed == 'ssh gpu-1 "sudo nvidia-smi -i GPU-1 -pl 700; sudo nvidia-smi -i GPU-1 -rgc"\n'

    again = block("docs/install.md", "helm upgrade --install power")
    refused = plane.shell(again.replace("--take-ownership", ""))
    assert refused.returncode != 0 and "invalid ownership metadata" in refused.stderr
    run(plane, again)
    assert nothing_lost(plane, before) and edited(plane)
    run(plane, f"helm upgrade power helm/splitwatt -n {NAMESPACE} --reuse-values --set operator.logLevel=debug")
    assert nothing_lost(plane, before)


def test_a_second_release_beside_the_first_is_refused(plane: GuardedPlane) -> None:
    run(plane, block("README.md", "kubectl apply -f helm/namespace.yaml"))
    second = f"helm install other helm/splitwatt -n other --create-namespace --set image.registry={REGISTRY}"
    refused = plane.shell(second)
    assert refused.returncode != 0
    assert "exists and cannot be imported into the current release" in refused.stderr


def test_what_is_to_go_goes(plane: GuardedPlane) -> None:
    run(plane, block("README.md", "kubectl apply -f helm/namespace.yaml"))
    fill(plane)
    run(plane, block("docs/install.md", "helm uninstall"))
    run(plane, block("docs/install.md", "kubectl delete crd"))
    assert not [crd for crd in objects(plane, "crd") if crd["spec"]["group"] == "splitwatt.io"]
    everything = ("clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "validatingadmissionpolicybindings")
    assert not objects(plane, ",".join(everything), "-l", "app.kubernetes.io/name=splitwatt")


def test_the_notes_say_what_stays_and_how_to_give_caps_back(plane: GuardedPlane) -> None:
    notes = run(plane, block("README.md", "kubectl apply -f helm/namespace.yaml")).stdout
    assert "driver     from RuntimeClass nvidia" in notes
    assert "it keeps every cap\nas it was last set" in notes
    (command,) = [line.strip() for line in notes.splitlines() if "go-template" in line]
    fill(plane)
    assert (
        run(plane, command).stdout == run(plane, block("docs/install.md", "kubectl get nodepowers -o go-template")).stdout != ""
    )
