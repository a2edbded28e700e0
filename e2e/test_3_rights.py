"""What must not work, and what must be said when something is missing; and a plan made on the cluster itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ground import images, serving
from ground.furnish import NAMESPACE
from ground.site import Site
from splitwatt_lab.judge import Judge
from splitwatt_nvml_twin.handle import environment

SETTLED_S = 60.0
PLAN_S = 300.0
SHARDS = 2
STRANGER = "stranger"
PLAN = ("plan", "--servers", "3", "--seconds", "20", "--step", "20")
SET_LIMIT = """
import sys, pynvml
pynvml.nvmlInit()
pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(0), int(sys.argv[1]))
"""


def test_an_agents_token_is_refused_on_another_nodes_node_power(installed: Site) -> None:
    cluster, node = installed.cluster, installed.cluster.nodes()[0]
    installed.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": STRANGER}})
    try:
        bound = ("create", "token", "splitwatt-agent", "-n", NAMESPACE, "--bound-object-kind=Node")
        status = json.dumps({"status": {"observedTerm": 999}})
        said = {}
        for name in (STRANGER, node):
            token = cluster.kubectl(*bound, f"--bound-object-name={name}").stdout.strip()
            said[name] = as_token(installed, token, "patch", "np", node, "--subresource=status", "--type=merge", "-p", status)
    finally:
        cluster.kubectl("delete", "node", STRANGER)
    assert f"may write only the NodePower of that name, not {node}" in said[STRANGER]
    assert "may write only" not in said[node], "the node's own token is not refused for that"


def as_token(site: Site, token: str, *arguments: str) -> str:
    """What kubectl says under this token and nothing else."""
    config = json.loads(site.cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)
    config["users"] = [{"name": each["name"], "user": {"token": token}} for each in config["users"]]
    file = site.cluster.scratch / "token.kubeconfig"
    file.write_text(json.dumps(config))
    result = site.cluster.kubectl(f"--kubeconfig={file}", *arguments, check=False)
    return result.stdout + result.stderr


def test_a_second_writer_is_set_right(installed: Site, judged: Judge) -> None:
    """Somebody else's tool raises a GPU's limit; the budget's reserve covers it until the agent has set it right."""
    node = installed.cluster.nodes()[0]
    twin = installed.cluster.twin(node)
    installed.await_("a cap below the default", lambda: twin.read_enforced_mw()[0] < 650_000, timeout_s=SETTLED_S)
    granted_mw = twin.read_enforced_mw()[0]
    command = [sys.executable, "-c", SET_LIMIT, "700000"]
    subprocess.run(command, env=environment(twin.path), check=True)
    installed.await_("its grant again", lambda: twin.read_enforced_mw()[0] <= granted_mw, timeout_s=SETTLED_S)


def test_an_agent_without_nvml_is_not_ready_and_says_what_to_set(installed: Site) -> None:
    site = installed
    site.install("--set=agent.runtimeClassName=", wait=False)
    try:
        site.await_("an agent that is not Ready", lambda: not_ready(site), timeout_s=SETTLED_S)
        node = site.cluster.nodes()[0]
        site.await_(
            "a NodePower that says what to set",
            lambda: any("agent.runtimeClassName" in (each.get("message") or "") for each in conditions(site, node)),
            timeout_s=SETTLED_S,
        )
    finally:
        site.install()
    for node in site.cluster.nodes():
        site.await_ready("np", node, timeout_s=SETTLED_S)


def not_ready(site: Site) -> bool:
    """An agent's pod that runs without a runtime class, for a while already, and is not Ready."""
    pods = [pod for pod in site.pods("agent") if not pod["spec"].get("runtimeClassName")]
    statuses = [status for pod in pods for status in pod["status"].get("containerStatuses", ())]
    return bool(statuses) and all("running" in each["state"] and not each["ready"] for each in statuses)


def conditions(site: Site, node: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = site.get("np", node).get("status", {}).get("conditions", [])
    return found


def test_a_plan_is_made_on_the_cluster_from_a_claim(installed: Site, tmp_path: Path) -> None:
    site = installed
    serving.make_namespace(site, "lab")
    site.apply(*volume(site.cluster.nodes()[0]))
    sweep = tmp_path / "sweep.yaml"
    where = ("--namespace", "lab", "--claim", "results")
    image = f"{images.REGISTRY}/splitwatt-sim:{images.__version__}"
    written = splitwatt(*PLAN, "--on-kubernetes", "--shards", str(SHARDS), "--image", image, *where, "--output", str(sweep))
    job = next(word for word in written.split() if word.startswith("job/"))
    site.cluster.kubectl("apply", "--server-side", "-f", sweep)
    site.cluster.kubectl("wait", "-n", "lab", job, "--for=condition=Complete", f"--timeout={PLAN_S:g}s", timeout_s=PLAN_S + 10)
    source = next(word for word in written.split() if ":/shards/" in word)
    shards = tmp_path / "shards"
    site.cluster.kubectl("-n", "lab", "cp", source, shards)
    assert len(list(shards.rglob("*"))) >= SHARDS
    said = splitwatt(*PLAN, "--namespace", "lab", "--merge", str(shards), "--out", str(tmp_path / "plan"))
    assert list((tmp_path / "plan").rglob("*.yaml")), said


def splitwatt(*words: str) -> str:
    command = [sys.executable, "-m", "splitwatt_cli.main", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def volume(node: str) -> list[dict[str, object]]:
    """A claim and what it is bound to, on one node's disk: every pod of the Job goes there."""
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    size = {"storage": "1Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "results"},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "",
                "hostPath": {"path": "/var/lib/splitwatt/results", "type": "DirectoryOrCreate"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
                "claimRef": {"namespace": "lab", "name": "results"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "results", "namespace": "lab"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "",
                "resources": {"requests": size},
                "volumeName": "results",
            },
        },
    ]
