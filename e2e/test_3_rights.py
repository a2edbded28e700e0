"""What must not work, and what must be said when something is missing; and a plan made on the cluster itself."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
from ground import serving
from ground.furnish import NAMESPACE
from ground.site import Site
from splitwatt_lab.judge import Judge
from splitwatt_nvml_twin.handle import environment

SETTLED_S = 60.0
PLAN_S = 300.0
SHARDS = 2
DEFAULT_MW = 700_000
STRANGER = "stranger"
HOST, FOLDER = "/var/lib/splitwatt", "results"
PLAN = ("plan", "--servers", "3", "--seconds", "20", "--step", "20")
SET_LIMIT = """
import sys, pynvml
pynvml.nvmlInit()
pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByUUID(sys.argv[1]), int(sys.argv[2]))
"""


def test_an_agents_token_is_refused_on_another_nodes_node_power(installed: Site) -> None:
    cluster, node = installed.cluster, installed.cluster.nodes()[0]
    installed.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": STRANGER}})
    try:
        bound = ("create", "token", "splitwatt-agent", "-n", NAMESPACE, "--bound-object-kind=Node")
        said = {}
        for name in (STRANGER, node):
            token = cluster.kubectl(*bound, f"--bound-object-name={name}").stdout.strip()
            said[name] = acknowledge(installed, token, node)
    finally:
        cluster.kubectl("delete", "node", STRANGER)
    assert f"may write only the NodePower of that name, not {node}" in said[STRANGER]
    assert "may write only" not in said[node], "the node's own token is not refused for that"


def acknowledge(site: Site, token: str, node: str) -> str:
    """What the API server says to a status that claims a high term, under this token and nothing else."""
    cluster = json.loads(site.cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)["clusters"][0][
        "cluster"
    ]
    data = cluster.get("certificate-authority-data")
    pem = base64.b64decode(data).decode() if data else Path(cluster["certificate-authority"]).read_text()
    with httpx.Client(base_url=cluster["server"], verify=ssl.create_default_context(cadata=pem), trust_env=False) as client:
        answer = client.patch(
            f"/apis/splitwatt.io/v1alpha1/nodepowers/{node}/status",
            content=json.dumps({"status": {"observedTerm": 999}}),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
        )
    return str(answer.json().get("message", ""))


def test_a_second_writer_is_set_right(installed: Site, judged: Judge) -> None:
    """Somebody else's tool raises a GPU's limit; the budget's reserve covers it until the agent has set it right."""
    node = installed.cluster.nodes()[0]
    twin = installed.cluster.twin(node)
    caps_mw = twin.read_enforced_mw()
    slot = caps_mw.index(min(caps_mw))
    assert caps_mw[slot] < DEFAULT_MW, "a GPU that nobody holds is capped"
    subprocess.run([sys.executable, "-c", SET_LIMIT, twin.uuids[slot], str(DEFAULT_MW)], env=environment(twin.path), check=True)
    installed.await_("its grant again", lambda: twin.read_enforced_mw()[slot] <= caps_mw[slot], timeout_s=SETTLED_S)


def test_an_agent_without_nvml_is_not_ready_and_says_what_to_set(installed: Site) -> None:
    site = installed
    site.install("--set=agent.runtimeClassName=", wait=False)
    try:
        site.await_("an agent that is not Ready", lambda: bool(not_ready(site)), timeout_s=SETTLED_S)
        node = not_ready(site)[0]  # the others wait for it: a rollout stops at what does not become Ready
        site.await_(
            "a NodePower that says what to set",
            lambda: any("agent.runtimeClassName" in (each.get("message") or "") for each in conditions(site, node)),
            timeout_s=SETTLED_S,
        )
    finally:
        site.install()
    for node in site.cluster.nodes():
        site.await_ready("np", node, timeout_s=SETTLED_S)


def not_ready(site: Site) -> list[str]:
    """Nodes whose agent runs without a runtime class and is not Ready."""
    pods = [pod for pod in site.pods("agent") if not pod["spec"].get("runtimeClassName")]
    started = [(pod, status) for pod in pods for status in pod["status"].get("containerStatuses", ())]
    return [pod["spec"]["nodeName"] for pod, status in started if "running" in status["state"] and not status["ready"]]


def conditions(site: Site, node: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = site.get("np", node).get("status", {}).get("conditions", [])
    return found


def test_a_plan_is_made_on_the_cluster_from_a_claim(installed: Site, tmp_path: Path) -> None:
    site = installed
    serving.make_namespace(site, "lab")
    node = site.cluster.nodes()[0]
    make_folder(site, node)
    site.apply(*volume(node))
    sweep = tmp_path / "sweep.yaml"
    where = ("--namespace", "lab", "--claim", "results")
    image = site.cluster.image("sim")
    written = splitwatt(*PLAN, "--on-kubernetes", "--shards", str(SHARDS), "--image", image, *where, "--output", str(sweep))
    job = next(word for word in written.split() if word.startswith("job/"))
    site.cluster.kubectl("apply", "--server-side", "-f", sweep)
    site.await_("the Job has ended", lambda: bool(ended(site, job)), timeout_s=PLAN_S)
    assert ended(site, job) == ["Complete"]
    source = next(word for word in written.split() if ":/shards/" in word)
    shards = tmp_path / "shards"
    site.cluster.kubectl("-n", "lab", "cp", source, shards)
    assert len(list(shards.rglob("*"))) >= SHARDS
    said = splitwatt(*PLAN, "--namespace", "lab", "--merge", str(shards), "--out", str(tmp_path / "plan"))
    assert list((tmp_path / "plan").rglob("*.yaml")), said


def ended(site: Site, job: str) -> list[str]:
    conditions = site.get(job, "-n", "lab").get("status", {}).get("conditions", [])
    return [each["type"] for each in conditions if each["status"] == "True" and each["type"] in ("Complete", "Failed")]


def make_folder(site: Site, node: str) -> None:
    """On the node, for everybody: a path of the host is nobody's to hand over to a pod's group."""
    script = f"import os; os.makedirs('/host/{FOLDER}', exist_ok=True); os.chmod('/host/{FOLDER}', 0o777)"
    container = {
        "name": "make",
        "image": site.cluster.image("agent"),
        "command": ["python", "-c", script],
        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
    }
    volumes = [{"name": "host", "hostPath": {"path": HOST, "type": "DirectoryOrCreate"}}]
    spec = {"nodeName": node, "restartPolicy": "Never", "containers": [container], "volumes": volumes}
    metadata = {"name": "make-folder", "namespace": "kube-system"}
    site.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    done = "--for=jsonpath={.status.phase}=Succeeded"
    site.cluster.kubectl("wait", "-n", "kube-system", "pod/make-folder", done, "--timeout=60s")


def splitwatt(*words: str) -> str:
    result = subprocess.run([sys.executable, "-m", "splitwatt_cli.main", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


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
                "hostPath": {"path": f"{HOST}/{FOLDER}", "type": "Directory"},
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
