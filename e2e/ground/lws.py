"""The LeaderWorkerSet controller itself, with its definitions and webhooks, whose certificates it makes: built from its pinned
module like the programs of a node, in an image of one program. A cluster that has it already keeps it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from splitwatt_lab.toolbuild import Progress, ensure_built, ensure_tools, module_folder, silent
from splitwatt_lab.toolchain import Tool, tools_directory

from ground import archive
from ground.cluster import Commands
from ground.site import Site

PINS: Final = Path(__file__).resolve().parents[1] / "lws"
_MODULE: Final = "sigs.k8s.io/lws"
TOOLS: Final = (Tool("lws", "lws", f"{_MODULE}/cmd", _MODULE, root=PINS),)
IMAGE: Final = "localhost/splitwatt-e2e-lws:1"
NAMESPACE: Final = "lws-system"
NAME: Final = "lws-controller-manager"
API: Final = "leaderworkerset.x-k8s.io/v1"
GROUP_LABEL: Final = "leaderworkerset.sigs.k8s.io/group-key"
SET_LABEL: Final = "leaderworkerset.sigs.k8s.io/name"
READY_S: Final = 120.0
_MANIFESTS: Final = "lws.yaml"
_USER: Final = 65532
"""Its image names the user of distroless; ours names none, and it must not be root."""


def ensure(progress: Progress = silent) -> tuple[Path, Path]:
    """The program, and its manifests as `kubectl kustomize` makes them of the module's own; made where they were not found.
    Needs the machine's network the first time. Raises LabError."""
    folder = tools_directory(TOOLS, PINS)
    program = ensure_built(TOOLS, folder, progress)["lws"]
    manifests = folder / _MANIFESTS
    if not manifests.is_file():
        source = module_folder(TOOLS[0].folder, _MODULE, wanted="the manifests of LeaderWorkerSet") / "config" / "default"
        made = folder / f"{_MANIFESTS}.new"
        with tempfile.TemporaryDirectory() as home:
            commands = Commands(tools=ensure_tools().paths, kubeconfig=Path(home) / "none", home=Path(home))
            made.write_text(commands.kubectl("kustomize", source).stdout)
        made.rename(manifests)
    return program, manifests


def install(site: Site) -> None:
    """Waits until it serves and its webhooks answer."""
    cluster = site.cluster
    if cluster.kubectl("get", "crd", "leaderworkersets.leaderworkerset.x-k8s.io", check=False).returncode != 0:
        program, manifests = ensure()
        files = {"/manager": program}
        cluster.load([archive.write(cluster.scratch / "lws.tar", name=IMAGE, files=files, entrypoint=["/manager"])])
        # On the server's side: the definitions are larger than the annotation that kubectl would write.
        cluster.kubectl("apply", "--server-side", "-f", "-", stdin=fitted(manifests.read_text()))
    cluster.kubectl("rollout", "status", f"deploy/{NAME}", "-n", NAMESPACE, f"--timeout={READY_S:g}s")
    trial = json.dumps(
        leader_worker_set("trial", "default", size=1, labels={}, spec={"containers": [{"name": "c", "image": "i"}]})
    )

    def answers() -> bool:
        return cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=trial, check=False).returncode == 0

    site.await_("the webhooks of LeaderWorkerSet answer", answers, timeout_s=READY_S)


def fitted(manifests: str) -> str:
    """With our image, once, and without the CPU that it asks for; all else as it is."""
    documents = re.split(r"^---\n", manifests, flags=re.MULTILINE)
    return "---\n".join(_of_one(text) if re.search(r"^kind: Deployment$", text, re.MULTILINE) else text for text in documents)


def _of_one(text: str) -> str:
    deployment: dict[str, Any] = yaml.safe_load(text)
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    deployment["spec"]["replicas"] = 1
    container["image"], container["imagePullPolicy"] = IMAGE, "IfNotPresent"
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    del container["resources"]
    pod["securityContext"]["runAsUser"] = _USER
    return json.dumps(deployment) + "\n"


def leader_worker_set(
    name: str, namespace: str, *, size: int, labels: Mapping[str, str], spec: Mapping[str, Any]
) -> Mapping[str, Any]:
    """One replica of `size` pods alike."""
    return {
        "apiVersion": API,
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {"size": size, "workerTemplate": {"metadata": {"labels": dict(labels)}, "spec": dict(spec)}},
        },
    }
