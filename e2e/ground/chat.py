"""The examples of a chat service as a ground serves them, and the README's words to a service."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml
from splitwatt_lab.errors import LabError

from ground import host
from ground.site import REPOSITORY, Site, commands_of, written

FOLDER: Final = "/opt/vllm"
CLAIMS: Final[Mapping[str, str]] = {"vllm": "", "tiny-llama": "model"}
"""Claim -> folder below the nodes' folder of real vLLM."""
CPUS: Final = "1"
_NAMED_MODEL: Final = "meta-llama/Llama-3.1-70B-Instruct"
ANSWER_S: Final = 60


def example(name: str) -> Sequence[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((REPOSITORY / "examples" / name).read_text()) if each]


def emulated(site: Site) -> Sequence[Mapping[str, Any]]:
    """`examples/chat-emulated.yaml` with this ground's images and RuntimeClass."""
    namespace, cluster = example("chat-emulated.yaml")
    cluster["spec"]["engine"]["image"] = site.cluster.image("engine")
    return [namespace, here(cluster, router=site.cluster.image("router"), runtime_class=site.cluster.runtime_class)]


def on_cpus(*, image: str, router: str, runtime_class: str) -> Sequence[Mapping[str, Any]]:
    """`examples/chat-cpu.yaml` whose image is a small Python, with vLLM and a tiny model in a claim."""
    namespace, cluster = example("chat-cpu.yaml")
    spec = cluster["spec"]
    spec["engine"]["image"] = image
    engine_claim, model_claim = CLAIMS
    spec["model"]["source"] = {"claim": {"name": model_claim}}
    for role in ("prefill", "decode"):
        spec[role] = copy.deepcopy(spec[role])  # the example says both at once
        pod = spec[role]["template"]["spec"]
        (engine,) = pod["containers"]
        env = {
            "PATH": f"{FOLDER}/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{FOLDER}/site",
            "LD_LIBRARY_PATH": f"{FOLDER}/lib",
            "HOME": "/tmp",
            "USER": "engine",  # who asks for its name finds no line of /etc/passwd
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        engine["env"] += [{"name": name, "value": value} for name, value in env.items()]
        engine["volumeMounts"] = [{"name": engine_claim, "mountPath": FOLDER, "readOnly": True}]
        engine["resources"] = {"requests": {"cpu": "100m"}, "limits": {"cpu": CPUS}}
        pod["volumes"] = [{"name": engine_claim, "persistentVolumeClaim": {"claimName": engine_claim, "readOnly": True}}]
    return [namespace, here(cluster, router=router, runtime_class=runtime_class)]


def here(cluster: dict[str, Any], *, router: str, runtime_class: str) -> Mapping[str, Any]:
    spec = cluster["spec"]
    spec["router"] = {"type": "VLLM", "image": router}
    for role in ("prefill", "decode"):
        if runtime_class:
            spec[role].setdefault("template", {}).setdefault("spec", {})["runtimeClassName"] = runtime_class
    return cluster


def volumes(site: Site, namespace: str) -> Sequence[Mapping[str, Any]]:
    """Claims, and the nodes' folders that they are bound to."""
    size, access = {"storage": "1Gi"}, ["ReadOnlyMany"]
    made: list[Mapping[str, Any]] = []
    for name, below in CLAIMS.items():
        claim = {"accessModes": access, "storageClassName": "", "resources": {"requests": size}, "volumeName": name}
        there = {"path": f"{site.cluster.vllm()}/{below}".rstrip("/"), "type": "Directory"}
        bound = {"namespace": namespace, "name": name}
        disk = {"capacity": size, "accessModes": access, "storageClassName": "", "hostPath": there, "claimRef": bound}
        made += [
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": disk},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": bound, "spec": claim},
        ]
    return made


def curl(site: Site, *, model: str, timeout_s: float) -> Mapping[str, Any]:
    """Types the README's words to the service `chat`: waits until it is Ready, forwards its port, asks. The answer. Raises
    LabError."""
    words = [each for block in written("What to type", "sh") for each in commands_of(block)]
    wait, forward, ask = (next((each for each in words if word in each), []) for word in ("wait", "port-forward", "curl"))
    if not (wait and forward and ask):
        raise LabError("README.md waits for a service, forwards its port and asks it by curl; the scenario must follow the page")
    until = [f"--timeout={timeout_s:g}s" if word.startswith("--timeout=") else word for word in wait[1:]]
    site.cluster.kubectl(*until, timeout_s=timeout_s + 10)
    with site.cluster.beside(*(word for word in forward[1:] if word != "&")) as said:
        if "Forwarding from" not in said:
            raise LabError(f"kubectl port-forward did not begin: {said}")
        asks = [str(host.require("curl")), "-sS", "--max-time", str(ANSWER_S)]
        asks += [word.replace(_NAMED_MODEL, model) for word in ask[1:]]
        result = subprocess.run(asks, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)  # and no proxy
    if result.returncode != 0:
        raise LabError(f"curl failed: {result.stderr.strip()}")
    answer: Mapping[str, Any] = json.loads(result.stdout)
    return answer
