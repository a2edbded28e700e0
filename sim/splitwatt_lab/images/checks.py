"""Each image started in a container, as the user it will have, until it has done the first step of its work.

Operator and agent work together, on a real control plane and one node of simulated GPUs: the operator takes the Lease and
grants caps below a budget, the agent sets them, and the GPUs themselves say so. The operator's Prometheus has a name that
nobody knows, as in a cluster whose DNS is not there yet. The router stands before two emulated engines, which are processes
beside it, and is told of them by its arguments: how it finds pods is `make e2e`'s to see.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, RoleSpec
from splitwatt_core.clusters import Role as ServingRole
from splitwatt_core.names import LABEL_RACK, M_VLLM_GENERATION_TOKENS, M_VLLM_PROMPT_TOKENS
from splitwatt_core.rendering.engine import PROBE_PATH, engine_args
from splitwatt_nvml_twin.build import LIBRARY_NAME, ensure_library
from splitwatt_nvml_twin.handle import STATE_FILE_VARIABLE, NodeTwin
from splitwatt_nvml_twin.models import H100_SXM

from splitwatt_lab import nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from splitwatt_lab.images.containers import Container
from splitwatt_lab.images.engines import ContainerEngine
from splitwatt_lab.ports import LOOPBACK, free_port
from splitwatt_lab.processes import ProcessGroup

UID: Final = 65532
GPUS: Final = 4
LIMIT_W: Final = 3000
"""Of one node of four GPUs: below their defaults of 700 W each with the node's own 1000 W, so that caps must fall."""
NODE_W: Final = 1000
RACK: Final = "images"
NAMESPACE: Final = "splitwatt-system"
ACCOUNT: Final = "images"
LIBRARY_FOLDER: Final = "/usr/local/lib/nvidia"
PLAN: Final = ("plan", "--servers", "3", "--seconds", "20", "--step", "20", "--jobs", "1", "--out", "/tmp/plan")
PLAN_S: Final = 600.0
PROMPT: Final = tuple(range(200))
TOKENS: Final = 8
WHAT_RUNS: Final = {"router": "vllm-router"}
"""The package in an image that has none of ours."""
VERSIONS: Final = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"


@dataclass(frozen=True, slots=True)
class Started:
    """`start_s`: from the engine's command until it answers (sim: until it has printed its help). `work_s`: until the first step
    of its work was done. `peak_mb`: resident, until then."""

    start_s: float
    work_s: float
    peak_mb: float


Images = Mapping[str, str]
"""Name -> reference."""


def check(images: Images, engine: ContainerEngine, root: Path, *, stage: Callable[[str], None]) -> dict[str, Started]:
    """Those of `images` that are there. `root`: the repository. Raises LabError with what did not work."""
    seen: dict[str, Started] = {}
    for name, image in images.items():
        stage(f"looking at what is installed in {name}")
        _as_constrained(name, image, engine, root)
    if "engine" in images:
        stage("starting an engine and asking it for a completion")
        seen["engine"] = _engine(images["engine"], engine, root)
    if "router" in images:
        stage("starting a router before two engines and asking it for a completion")
        seen["router"] = _router(images["router"], engine, root)
    if "sim" in images:
        stage("planning for a small fleet")
        seen["sim"] = _sim(images["sim"], engine, root)
    if "operator" in images and "agent" in images:
        stage("capping simulated GPUs by agent and operator on a control plane")
        seen |= _operator_and_agent(images, engine, root)
    return seen


def _log(root: Path, name: str) -> Path:
    return root / "out" / "images" / "logs" / f"{name}.log"


def _as_constrained(name: str, image: str, engine: ContainerEngine, root: Path) -> None:
    """What was tested together is what is installed; no installer is among it."""
    options = ["--entrypoint", "python", "--user", f"{UID}:{UID}"]
    with Container(engine, image, ["-c", VERSIONS], options=options, log=_log(root, f"{name}-versions")) as container:
        said = container.to_end().split()
    tested = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        if "==" in line:
            key, _, version = line.partition("==")
            tested[_canonical(key)] = version
    what_runs = WHAT_RUNS.get(name, "splitwatt")
    found = dict(pair.split("==") for pair in said)
    other = [f"{key} {version}" for key, version in found.items() if tested.get(_canonical(key), version) != version]
    extra = [key for key in found if _canonical(key) not in tested and key != "splitwatt"]
    if other or extra or what_runs not in found:
        raise LabError(f"{image} has other packages than constraints.txt: {', '.join([*other, *extra]) or f'no {what_runs}'}")


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _engine(image: str, engine: ContainerEngine, root: Path) -> Started:
    port, role = free_port(), RoleSpec(replicas=1, gpus_per_replica=8)
    cluster = ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="meta-llama/Llama-3.1-70B-Instruct",
        prefill=role, decode=role, engine=EngineSpec(EngineType.EMULATED, port=port, args=(f"--host={LOOPBACK}",)),
    )  # fmt: skip
    url = f"http://{LOOPBACK}:{port}"
    options = ["--user", f"{UID}:{UID}"]
    arguments = engine_args(cluster, ServingRole.DECODE)
    with Container(engine, image, arguments, options=options, log=_log(root, "engine")) as container:
        start_s = container.eventually(f"{PROBE_PATH} answers", lambda: _answers(f"{url}{PROBE_PATH}"))
        asked = {"model": cluster.model, "prompt": "Say how a watt is kept.", "max_tokens": 8}
        answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=30.0, trust_env=False).raise_for_status().json()
        if answer["usage"]["completion_tokens"] != 8:
            raise LabError(f"{image} gave {answer['usage']} for 8 tokens")
        if "vllm:" not in httpx.get(f"{url}/metrics", timeout=5.0, trust_env=False).text:
            raise LabError(f"{image} shows none of vLLM's metrics")
        return Started(start_s, container.eventually("it goes on", lambda: True), container.peak_mb())


def _router(image: str, engine: ContainerEngine, root: Path) -> Started:
    role, port, metrics_port = RoleSpec(replicas=1, gpus_per_replica=1), free_port(), free_port()
    cluster = ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="meta-llama/Llama-3.1-8B-Instruct",
        prefill=role, decode=role, engine=EngineSpec(EngineType.EMULATED, port=free_port()),
    )  # fmt: skip
    hosts = {ServingRole.PREFILL: "127.0.0.2", ServingRole.DECODE: "127.0.0.3"}
    urls = {each: f"http://{host}:{cluster.engine.port}" for each, host in hosts.items()}
    arguments = [
        *("--host", LOOPBACK, "--port", str(port), "--prometheus-host", LOOPBACK, "--prometheus-port", str(metrics_port)),
        *("--vllm-pd-disaggregation", "--kv-connector", "nixl"),
        *("--prefill", urls[ServingRole.PREFILL], "--decode", urls[ServingRole.DECODE]),
    ]
    with tempfile.TemporaryDirectory(prefix="splitwatt-images-") as folder, ProcessGroup(Path(folder)) as group:
        for each, host in hosts.items():
            command = [sys.executable, "-m", "splitwatt_twin.pod", *engine_args(cluster, each), "--host", host]
            process = group.start(each.value, command, env={"VLLM_NIXL_SIDE_CHANNEL_HOST": host})
            process.await_ready(lambda url=urls[each]: _answers(f"{url}{PROBE_PATH}"), timeout_s=60.0)  # type: ignore[misc]
        options = ["--user", f"{UID}:{UID}"]
        with Container(engine, image, arguments, options=options, log=_log(root, "router")) as container:
            url = f"http://{LOOPBACK}:{port}"
            start_s = container.eventually("it is alive", lambda: _answers(f"{url}/liveness"))
            container.eventually("it knows both engines", lambda: _answers(f"{url}/readiness"))
            asked = {"model": cluster.model, "prompt": PROMPT, "max_tokens": TOKENS}
            answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=30.0, trust_env=False)
            if not answer.is_success:
                raise LabError(f"{image} answered {answer.status_code}: {answer.text[:200]}")
            seen = {each.value: _tokens(url) for each, url in urls.items()}
            if seen != {"prefill": (len(PROMPT), 1), "decode": (0, TOKENS)}:
                raise LabError(f"{image} splits nothing: prompt tokens read and tokens written are {seen}")
            return Started(start_s, container.eventually("it goes on", lambda: True), container.peak_mb())


def _tokens(url: str) -> tuple[int, int]:
    """Of the prompts that an engine read, and of what it wrote."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=5.0, trust_env=False).text)
    counted = {sample.name: int(sample.value) for family in families for sample in family.samples}
    return counted[M_VLLM_PROMPT_TOKENS], counted[M_VLLM_GENERATION_TOKENS]


def _sim(image: str, engine: ContainerEngine, root: Path) -> Started:
    options = ["--user", f"{UID}:{UID}", "--tmpfs", "/tmp:mode=1777"]
    with Container(engine, image, ["plan", "--help"], options=options, log=_log(root, "sim-help")) as container:
        if "--watts" not in container.to_end():
            raise LabError(f"{image}: `splitwatt plan --help` does not tell of --watts")
        start_s = container.eventually("its help is printed", lambda: True)
    with Container(engine, image, PLAN, options=options, log=_log(root, "sim-plan")) as container:
        container.to_end(within_s=PLAN_S)
        return Started(start_s, container.eventually("the plan is made", lambda: True), container.peak_mb())


def _operator_and_agent(images: Images, engine: ContainerEngine, root: Path) -> dict[str, Started]:
    with tempfile.TemporaryDirectory(prefix="splitwatt-images-") as folder, ControlPlane(Path(folder) / "plane") as plane:
        for file in sorted((root / "crds").glob("*.yaml")):
            plane.kubectl("apply", "--server-side", "-f", file)
            plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", file)
        node = nodes.NodeSpec(name="images-n1", rack=RACK, gpus=GPUS)
        nodes.create(plane, [node])
        budget = {
            "apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": {"name": "images"},
            "spec": {"limitWatts": LIMIT_W, "mode": "Strict", "nodeSelector": {"matchLabels": {LABEL_RACK: RACK}},
                     "nonGpuWattsPerNode": NODE_W, "unmanagedWattsPerNode": 10_000},
        }  # fmt: skip
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(budget))
        scratch = Path(folder) / "pods"
        (scratch / "twin").mkdir(parents=True)
        given = _as_a_pod(plane, scratch / "account")
        state = scratch / "twin" / "gpus"
        with NodeTwin.create(state, gpus=[H100_SXM] * GPUS, boot_id=node.boot_id, node_name=node.name) as twin:
            (scratch / "twin" / "boot_id").write_text(node.boot_id)
            agent_port, operator_port = free_port(), free_port()
            driver = [
                *("--user", "0:0", "--cap-add", "SYS_ADMIN", "--tmpfs", "/var/lib/splitwatt"),
                *("--volume", f"{ensure_library() / LIBRARY_NAME}:{LIBRARY_FOLDER}/{LIBRARY_NAME}:ro"),
                *("--volume", f"{state.parent}:/twin", "--env", f"{STATE_FILE_VARIABLE}=/twin/{state.name}"),
                *("--env", f"LD_LIBRARY_PATH={LIBRARY_FOLDER}"),
            ]
            with (
                Container(
                    engine, images["agent"],
                    ["--node-name", node.name, "--state-dir", "/var/lib/splitwatt/state", "--boot-id-file", "/twin/boot_id",
                     "--listen", f"{LOOPBACK}:{agent_port}", "--pod-resources", "",],
                    options=[*given, *driver], log=_log(root, "agent"),
                ) as agent,
                Container(
                    engine, images["operator"],
                    ["--prometheus-url", "http://prometheus.monitoring.svc.invalid:9090", "--namespace", NAMESPACE,
                     "--listen", f"{LOOPBACK}:{operator_port}",],
                    options=[*given, "--user", f"{UID}:{UID}"], log=_log(root, "operator"),
                ) as operator,
            ):  # fmt: skip
                agent_s = agent.eventually("it is healthy", lambda: _answers(f"http://{LOOPBACK}:{agent_port}/healthz"))
                operator_s = operator.eventually("it is healthy", lambda: _answers(f"http://{LOOPBACK}:{operator_port}/healthz"))
                most_mw = 1000 * (LIMIT_W - NODE_W)
                operator_work_s = operator.eventually(
                    "caps add up to less than the limit", lambda: sum(gpu.enforced_mw for gpu in twin.read_all()) <= most_mw
                )
                agent_work_s = agent.eventually("it goes on", lambda: True)
                return {
                    "operator": Started(operator_s, operator_work_s, operator.peak_mb()),
                    "agent": Started(agent_s, agent_work_s, agent.peak_mb()),
                }


def _as_a_pod(plane: ControlPlane, folder: Path) -> list[str]:
    """The engine's options that give a container what the kubelet gives a pod to find the API server. Whoever runs in the
    container may read it; nobody else gets into its folder."""
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.kubectl("create", "serviceaccount", ACCOUNT, "--namespace", NAMESPACE)
    plane.kubectl(
        "create", "clusterrolebinding", "images", "--clusterrole=cluster-admin", f"--serviceaccount={NAMESPACE}:{ACCOUNT}"
    )  # fmt: skip
    config = json.loads(plane.token_kubeconfig(NAMESPACE, ACCOUNT).read_text())
    authority = Path(config["clusters"][0]["cluster"]["certificate-authority"])
    folder.mkdir()
    for name, content in (("token", config["users"][0]["user"]["token"].encode()), ("ca.crt", authority.read_bytes())):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644)
    server = httpx.URL(plane.url)
    variables = {"KUBERNETES_SERVICE_HOST": server.host, "KUBERNETES_SERVICE_PORT": str(server.port)}
    given = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    return [*given, "--volume", f"{folder}:/var/run/secrets/kubernetes.io/serviceaccount:ro"]
