"""A cluster's rendered pods as processes: emulated engines, and the real vllm-router under the account that is rendered for it.

Pods are objects on a real API server, whose status a test writes as a kubelet would; each engine's pod has a loopback
address of its own, for the router asks every engine at the same port.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core.clusters import ClusterSpec, Role
from splitwatt_core.names import GATE_POWER
from splitwatt_core.rendering.objects import ROUTER_PART, object_name
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import Process, ProcessGroup
from support.waiting import PATIENCE_S, eventually

ROUTER: Final = Path(sys.executable).with_name("vllm-router")
_STRATEGIC: Final = "application/strategic-merge-patch+json"


class RoutedCluster:
    """Objects of `spec` on `plane`; `engine` and `router` start what its pods would run. `revision`: goes before their names."""

    def __init__(self, plane: ControlPlane, group: ProcessGroup, spec: ClusterSpec, *, revision: str = "") -> None:
        self.plane, self.group, self.spec, self.revision = plane, group, spec, revision
        self.objects = {(m["kind"], m["metadata"]["name"]): m for m in render(spec, RenderContext())}
        self.http = httpx.Client(timeout=PATIENCE_S)
        self.url = ""
        self._engines: dict[str, str] = {}

    def apply_rights(self) -> None:
        name = object_name(self.spec.name, ROUTER_PART)
        for kind in ("ServiceAccount", "Role", "RoleBinding"):
            manifest = json.loads(json.dumps(self.objects[kind, name]))
            del manifest["metadata"]["ownerReferences"]  # of a cluster that is not there: the garbage collector would take it
            self.plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def engine(self, role: Role, address: str, *, args: Sequence[str] = (), pod: str = "") -> str:
        """A pod of this role that runs at `address` and is Ready; its name."""
        name = pod or f"{self.revision}{self.spec.name}-{role}-{address.rpartition('.')[2]}"
        template = self.objects["Deployment", object_name(self.spec.name, role)]["spec"]["template"]
        command = [sys.executable, "-m", "splitwatt_twin.pod", *template["spec"]["containers"][0]["args"], "--host", address]
        process = self.group.start(name, [*command, *args], env={"VLLM_NIXL_SIDE_CHANNEL_HOST": address})
        self._engines[name] = f"http://{address}:{self.spec.engine.port}"
        process.await_ready(lambda: self.answers(f"{self._engines[name]}/health"), timeout_s=PATIENCE_S)
        self._pod(name, template)
        self.set_ready(name, address)
        return name

    def join(self, role: Role, address: str) -> str:
        """A pod of this role whose engine runs at `address` already, and is Ready; its name."""
        name = f"{self.spec.name}-{role}-{address.rpartition('.')[2]}"
        self._pod(name, self.objects["Deployment", object_name(self.spec.name, role)]["spec"]["template"])
        self.set_ready(name, address)
        return name

    def set_ready(self, name: str, address: str, *, ready: bool = True) -> None:
        conditions = [{"type": "Ready", "status": str(ready)}]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
        path = f"/api/v1/namespaces/{self.spec.namespace}/pods/{name}/status"
        headers = {"Content-Type": _STRATEGIC}
        self.plane.http.patch(path, content=json.dumps({"status": status}), headers=headers).raise_for_status()

    def leave(self, name: str) -> None:
        """The pod is told to go, and its process still answers: as in its grace."""
        path = f"/api/v1/namespaces/{self.spec.namespace}/pods/{name}"
        self.plane.http.request("DELETE", path, json={"gracePeriodSeconds": 60}).raise_for_status()

    def router(self) -> Process:
        """The rendered command, at ports of its own."""
        deployment = self.objects["Deployment", object_name(self.spec.name, ROUTER_PART)]["spec"]["template"]["spec"]
        container, port = deployment["containers"][0], free_port()
        assert container["command"] in (["vllm-router"], ["python3", "-m", "sglang_router.launch_router"])
        command = [sys.executable, *container["command"][1:]] if len(container["command"]) > 1 else [str(ROUTER)]
        args = list(container["args"])
        args[args.index("--host") + 1] = args[args.index("--prometheus-host") + 1] = "127.0.0.1"
        args[args.index("--port") + 1] = str(port)
        account = self.plane.token_kubeconfig(self.spec.namespace, deployment["serviceAccountName"])
        self.url = f"http://127.0.0.1:{port}"
        process = self.group.start(f"{self.revision}router", [*command, *args], env={"KUBECONFIG": str(account)})
        process.await_ready(lambda: self.answers(f"{self.url}/liveness"), timeout_s=PATIENCE_S)
        return process

    def await_routed(self) -> None:
        """The router is ready as its probe would see it."""
        eventually("the router is ready", lambda: self.answers(f"{self.url}/readiness"))

    def ask(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        return self.http.post(f"{self.url}{path}", json={"model": self.spec.model, **body})

    def ask_engine(self, name: str, **body: Any) -> dict[str, Any]:
        """Past the router."""
        answer = self.http.post(f"{self._engines[name]}/v1/completions", json={"model": self.spec.model, **body})
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def counts(self, name: str) -> Mapping[str, float]:
        """An engine's counters, without labels."""
        text = self.http.get(f"{self._engines[name]}/metrics").text
        families = text_string_to_metric_families(text)
        return {sample.name: sample.value for family in families for sample in family.samples}

    def answers(self, url: str) -> bool:
        try:
            return self.http.get(url, timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self.http.close()

    def _pod(self, name: str, template: Mapping[str, Any]) -> None:
        pod = json.loads(json.dumps(template))
        pod["spec"]["schedulingGates"] = [gate for gate in pod["spec"]["schedulingGates"] if gate["name"] != GATE_POWER]
        pod["spec"]["nodeSelector"] = {"nobody": "here"}  # whoever schedules or plays kubelet keeps off
        manifest = {"apiVersion": "v1", "kind": "Pod", **pod}
        manifest["metadata"] |= {"name": name, "namespace": self.spec.namespace}
        self.plane.http.post(f"/api/v1/namespaces/{self.spec.namespace}/pods", json=manifest).raise_for_status()
