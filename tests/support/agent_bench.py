"""A bench for the node agent: a simulated node, its NodePower on the real API server, and the agent as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core.protocol.contract import GRANTS_PER_TERM, Grant, Mode, Phase, Spec, spec_to_wire
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_nvml_twin.handle import NodeTwin, environment
from splitwatt_nvml_twin.models import H100_SXM
from support.asking import HTTP
from support.waiting import PATIENCE_S, eventually

NODE_POWERS = "/apis/splitwatt.io/v1alpha1/nodepowers"
AGENT = (sys.executable, "-m", "splitwatt_agent")


_KUBELET = """
import asyncio, json, sys
from grpclib.const import Cardinality, Handler
from grpclib.server import Server
from splitwatt_client import podresources as api

pods, claims = json.loads(sys.argv[2])
answer = api.response_of(
    {api.DeviceOwner(namespace, pod): names for namespace, pod, names in pods},
    resource_name="nvidia.com/gpu",
    claims=[api.ClaimedDevice(api.DeviceOwner(namespace, pod), *device) for namespace, pod, device in claims],
)

class Lister:
    async def list(self, stream):
        await stream.recv_message()
        await stream.send_message(answer)

    def __mapping__(self):
        return {api.LIST_METHOD: Handler(
            self.list, Cardinality.UNARY_UNARY, api.ListPodResourcesRequest, api.ListPodResourcesResponse)}

async def main():
    server = Server([Lister()])
    await server.start(path=sys.argv[1])
    await server.wait_closed()

asyncio.run(main())
"""


class AgentBench:
    """One node. `grant` plays the operator; `twin` is the hardware; `start` runs `python -m splitwatt_agent`."""

    def __init__(self, plane: ControlPlane, folder: Path, *, gpus: int = 2) -> None:
        self.plane = plane
        self.node = f"n-{uuid.uuid4().hex[:8]}"
        self.folder = folder / self.node
        self.folder.mkdir(parents=True)
        self.boot_id_file = self.folder / "boot_id"
        self.boot_id_file.write_text("boot-1\n")
        self.twin = NodeTwin.create(self.folder / "gpus", gpus=[H100_SXM] * gpus, boot_id="boot-1", node_name=self.node)
        self.state_dir = self.folder / "state"
        self.port = 0
        self.log = self.folder / "agent.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._round = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.delete(missing_ok=True)
        self.twin.close()
        if error is not None:
            error.add_note(f"agent log:\n{self.log.read_text() if self.log.exists() else '(none)'}")

    # ------------------------------------------------------------------------------------------------- the process

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, program: Sequence[str] = AGENT
    ) -> subprocess.Popen[bytes]:
        self.port = free_port()
        command = [
            *program, "--node-name", self.node, "--state-dir", str(self.state_dir),
            "--boot-id-file", str(self.boot_id_file), "--listen", f"127.0.0.1:{self.port}",
            "--kubeconfig", str(self.plane.kubeconfig), "--pod-resources", "", *arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**self.environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def environment(self) -> dict[str, str]:
        """For a process that shall find the simulated NVML."""
        return {**os.environ, **environment(self.twin.path)}

    def kubelet(
        self,
        socket: Path,
        pods: Mapping[tuple[str, str], Iterable[int | str]],
        claims: Mapping[tuple[str, str], tuple[str, str, str]] = MappingProxyType({}),
    ) -> subprocess.Popen[bytes]:
        """Plays kubelet: each pod holds these GPUs, by index or by any name; `claims`: driver, pool and device of a claim."""
        held = [(*pod, [self.twin.uuids[of] if isinstance(of, int) else of for of in names]) for pod, names in pods.items()]
        wanted = json.dumps((held, [(*pod, device) for pod, device in claims.items()]))
        process = subprocess.Popen([sys.executable, "-c", _KUBELET, str(socket), wanted], stdin=subprocess.DEVNULL)
        self._processes.append(process)
        eventually("kubelet's socket is there", socket.exists)
        return process

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals) -> int:
        process.send_signal(number)
        return process.wait(timeout=PATIENCE_S)

    # ---------------------------------------------------------------------------------------------- the operator's side

    @property
    def path(self) -> str:
        return f"{NODE_POWERS}/{self.node}"

    def create(self) -> dict[str, Any]:
        return self._answer(
            self.plane.http.post(
                NODE_POWERS,
                json={"apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": self.node}},
            )
        )

    def delete(self, *, missing_ok: bool = False) -> None:
        response = self.plane.http.delete(self.path)
        assert missing_ok or response.is_success, response.text

    def object(self) -> dict[str, Any]:
        return self._answer(self.plane.http.get(self.path))

    def grant(
        self,
        caps_w: Mapping[int, int],
        *,
        term: int = 1,
        for_uid: str | None = None,
        mode: Mode = Mode.STRICT,
        safe_w: int | None = None,
        node_limit_w: int | None = None,
        max_clock_mhz: int | None = None,
    ) -> int:
        """Write a spec that grants these caps by GPU index; returns the grant number."""
        self._round += 1
        number = term * GRANTS_PER_TERM + self._round
        spec = Spec(
            term=term,
            for_uid=for_uid if for_uid is not None else self.object()["metadata"]["uid"],
            mode=mode,
            node_limit_w=node_limit_w,
            gpus=tuple(
                Grant(
                    uuid=self.twin.uuids[index], grant=number, cap_w=cap_w,
                    safe_cap_w=min(cap_w, safe_w or cap_w), charge_w=700, max_clock_mhz=max_clock_mhz,
                    phase=Phase.DECODE,
                )
                for index, cap_w in caps_w.items()
            ),
        )  # fmt: skip
        self.apply_spec(spec_to_wire(spec))
        return number

    def apply_spec(self, spec: Mapping[str, Any]) -> None:
        body = {
            "apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": self.node}, "spec": spec
        }  # fmt: skip
        self._answer(
            self.plane.http.patch(
                self.path,
                params={"fieldManager": "splitwatt-operator", "force": "true"},
                headers={"Content-Type": "application/apply-patch+yaml"},
                content=json.dumps(body),
            )
        )

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json()
        return answer

    # -------------------------------------------------------------------------------------------------- what is seen

    def line(self, index: int) -> dict[str, Any]:
        """One GPU's line of the status; empty while there is none."""
        rows = self.object().get("status", {}).get("gpus", [])
        return next((row for row in rows if row["uuid"] == self.twin.uuids[index]), {})

    def acked(self, index: int) -> int:
        return int(self.line(index).get("ackedGrant", 0))

    def condition(self, kind: str) -> dict[str, Any]:
        conditions = self.object().get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def await_ack(self, number: int, indices: Iterable[int]) -> None:
        for index in indices:
            eventually(f"GPU {index} acknowledges {number}", partial(lambda gpu: self.acked(gpu) == number, index))

    def limits_w(self) -> list[tuple[float, float]]:
        """The true (management, enforced) limits by index."""
        return [(t.management_mw / 1000, t.enforced_mw / 1000) for t in self.twin.read_all()]

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Sample name -> labels -> value; empty while nothing listens."""
        try:
            text = HTTP.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10.0).text
        except httpx.TransportError:
            return {}
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def gpu_metric(self, name: str, index: int) -> float | None:
        for labels, value in self.metrics().get(name, {}).items():
            if ("gpu", self.twin.uuids[index]) in labels:
                return value
        return None
