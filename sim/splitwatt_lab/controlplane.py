"""A real Kubernetes control plane on this machine: etcd, API server, controller-manager, scheduler, and kwok's nodes.

    with ControlPlane() as plane:
        plane.kubectl("get", "nodes")

Every component listens on a free loopback port, speaks TLS under the control plane's own authorities and logs to a file of
its own. Any one of them can be stopped, killed and started again while the rest go on. Leaving the block, or the death of
this process by any means, leaves no process, no port and (unless a directory was given) no file behind.

Order: the API server needs etcd; controller-manager, scheduler and kwok need the API server's bootstrap RBAC and exit
without it, so they start after /readyz.
"""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from splitwatt_lab import components, kubeconfig
from splitwatt_lab.certs import Authority, KeyPair, service_account_keys
from splitwatt_lab.components import Component, Places
from splitwatt_lab.errors import LabError
from splitwatt_lab.ports import LOOPBACK, is_free, require_free
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.servers import READY_S, answers, restart_server, start_server
from splitwatt_lab.toolbuild import Progress, ensure_tools, silent
from splitwatt_lab.toolchain import Tools

STOP_GRACE_S: Final[Mapping[Component, float]] = {
    # etcd would wait for the API server to hang up; its data survives a kill as long as the machine does.
    Component.ETCD: 1.0,
    Component.API_SERVER: 5.0,
    Component.CONTROLLER_MANAGER: 5.0,
    Component.SCHEDULER: 5.0,
    Component.KWOK: 5.0,
}
CLOSE_GRACE_S: Final = 1.0
TOKEN_LIFETIME_S: Final = 24 * 3600
_PROBE_S: Final = 2.0
_REQUEST_S: Final = 30.0
_POLL_S: Final = 0.03

_HEALTH: Final[Mapping[Component, str]] = {
    Component.ETCD: "/health",
    Component.API_SERVER: "/readyz",
    Component.CONTROLLER_MANAGER: "/healthz",
    Component.SCHEDULER: "/healthz",
    Component.KWOK: "/healthz",
}
_NODE_LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

_USERS: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    "admin": ("splitwatt-lab-admin", ("system:masters",)),
    Component.CONTROLLER_MANAGER: ("system:kube-controller-manager", ()),
    Component.SCHEDULER: ("system:kube-scheduler", ()),
    # kwok is every fake node's kubelet at once, which no node's own rights cover.
    Component.KWOK: ("kwok", ("system:masters",)),
}


class ControlPlane:
    """One control plane. `directory` keeps logs, keys and kubeconfigs after the end; without it they are deleted, unless
    the start failed. `port` fixes the API server's port, otherwise a free one is taken. `address`: an IP address of this
    machine where real kubelets and their pods reach the API server, which then listens on all addresses."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        tools: Tools | None = None,
        port: int | None = None,
        address: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self._temporary = directory is None
        self._given_directory = directory
        self._tools = tools
        self._progress = progress
        self._address = address
        self._fixed: dict[Component, int] = {} if port is None else {Component.API_SERVER: port}
        self._ports: dict[Component, int] = {}
        self._probes: dict[Component, httpx.Client] = {}
        self.directory = Path()

    # ------------------------------------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        """Start everything. Raises LabError: one sentence with what failed and where its log is."""
        self.tools = self._tools or ensure_tools(self._progress)
        for component, port in self._fixed.items():
            require_free(port, purpose=component.value)
        self.directory = (self._given_directory or Path(tempfile.mkdtemp(prefix="splitwatt-"))).resolve()
        self.logs = self.directory / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.group = ProcessGroup(self.directory, remove_directory=self._temporary)
        self.group.__enter__()
        try:
            self._prepare()
            for component in (Component.ETCD, Component.API_SERVER):
                self._first_start(component)
            self._write_kubeconfigs()
            self._http = httpx.Client(base_url=self.url, verify=self._ssl(), timeout=_REQUEST_S, trust_env=False)
            for component in (Component.CONTROLLER_MANAGER, Component.SCHEDULER, Component.KWOK):
                self._first_start(component)
            self._await_default_account()
        except BaseException as error:  # whatever ended the start, Ctrl-C too: no process of it may outlive it
            # The message names a log, so the log stays.
            self.group.close(0.0, keep=isinstance(error, LabError))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End everything; also called by leaving the block, and harmless twice."""
        for client in (self._http, *self._probes.values()):
            client.close()
        self.group.close(CLOSE_GRACE_S)

    # ------------------------------------------------------------------------------------------------ use

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self._ports[Component.API_SERVER]}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / "admin.kubeconfig"

    @property
    def http(self) -> httpx.Client:
        """The API server under the administrator's certificate: `http.get("/api/v1/nodes")`. Safe from several threads."""
        return self._http

    def kubectl(
        self, *arguments: str | Path, stdin: str | None = None, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator. With `check`, LabError says what kubectl said when it fails."""
        result = subprocess.run(
            [self.tools["kubectl"], f"--kubeconfig={self.kubeconfig}", *(str(a) for a in arguments)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={"KUBECACHEDIR": str(self.directory / "kubectl-cache"), "KUBERC": "off", "HOME": str(self.directory)},
        )
        if check and result.returncode != 0:
            raise LabError(f"kubectl {' '.join(map(str, arguments))} failed: {result.stderr.strip()}")
        return result

    def certificate_kubeconfig(self, name: str, *, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of `user` under a fresh certificate, in files called `name`: `system:node:N` in `system:nodes` is the
        kubelet of node N. It dials `address` where one was given."""
        pair = self._authority.client(name, user=user, groups=groups)
        server = f"https://{self._address or LOOPBACK}:{self._ports[Component.API_SERVER]}"
        authority = self._places.cluster_authority
        return kubeconfig.write_for_certificate(self._kubeconfig_of(name), server=server, authority=authority, client=pair)

    @property
    def client_authority(self) -> Path:
        """The certificate of whoever signs users: what a kubelet trusts its callers by."""
        return self._places.cluster_authority

    def token_kubeconfig(self, namespace: str, service_account: str, node: str | None = None) -> Path:
        """A kubeconfig under a fresh token of this service account, bound to the Node when one is named.

        A bound token carries the node's name (authentication.kubernetes.io/node-name) and dies with that Node object.
        Raises LabError when the account or the node does not exist.
        """
        spec: dict[str, Any] = {"expirationSeconds": TOKEN_LIFETIME_S}
        if node is not None:
            found = self._request("GET", f"/api/v1/nodes/{node}")
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": found["metadata"]["uid"]}
        answer = self._request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        folder = self.directory / "tokens"
        folder.mkdir(exist_ok=True, mode=0o700)
        name = ".".join(part for part in (namespace, service_account, node) if part)
        return kubeconfig.write_for_token(
            folder / f"{name}.kubeconfig",
            server=self.url,
            authority=self._places.cluster_authority,
            token=answer["status"]["token"],
            namespace=namespace,
        )

    # ------------------------------------------------------------------------------------------------ components

    def log(self, component: Component | str) -> Path:
        return self.logs / f"{Component(component)}.log"

    def port(self, component: Component | str) -> int:
        return self._ports[Component(component)]

    def ports(self) -> Mapping[str, int]:
        """Every port of the control plane by component."""
        return {component.value: port for component, port in self._ports.items()}

    def pid(self, component: Component | str) -> int:
        return self.group[Component(component)].pid

    def running(self, component: Component | str) -> bool:
        return self.group[Component(component)].running

    def stop(self, component: Component | str) -> None:
        """SIGTERM, then SIGKILL. The API server closes its port at once but drains open watches for a minute, so it is
        killed as soon as its port is closed."""
        component = Component(component)
        if component is Component.API_SERVER:
            process = self.group[component]
            process.send(signal.SIGTERM)
            deadline_s = time.monotonic() + STOP_GRACE_S[component]
            while process.running and not is_free(self._ports[component]) and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
            process.kill()
        else:
            self.group[component].stop(STOP_GRACE_S[component])

    def kill(self, component: Component | str) -> None:
        """SIGKILL, as a crash would be."""
        self.group[Component(component)].kill()

    def start(self, component: Component | str) -> None:
        """Start a stopped component on its old port and wait until it is ready. Raises LabError, PortInUseError."""
        component = Component(component)
        if component is Component.KWOK:
            self._release_node_leases()
        restart_server(self.group[component], self._ports[component], healthy=partial(self._healthy, component))

    def restart(self, component: Component | str) -> None:
        self.stop(component)
        self.start(component)

    # ------------------------------------------------------------------------------------------------ inside

    def _prepare(self) -> None:
        keys = self.directory / "keys"
        cluster, etcd = Authority(keys, "cluster"), Authority(keys, "etcd")
        self._authority = cluster
        outside = [] if self._address is None else [self._address]
        loopback = partial(Authority.server, dns_names=["localhost"], addresses=[LOOPBACK])
        self._users: Mapping[str, KeyPair] = {
            name: cluster.client(name, user=user, groups=groups) for name, (user, groups) in _USERS.items()
        }
        self._places = Places(
            etcd_data=self.directory / "etcd",
            cluster_authority=cluster.certificate,
            etcd_authority=etcd.certificate,
            etcd_server=loopback(etcd, "etcd-server"),
            etcd_client=etcd.client("etcd-client", user=Component.API_SERVER),
            server=cluster.server(
                "server",
                dns_names=["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"],
                addresses=[LOOPBACK, components.SERVICE_IP, *outside],
            ),
            service_accounts=service_account_keys(keys),
            scheduler_config=self.directory / "scheduler.yaml",
            stages=self.tools.stages,
            address=self._address,
            kubelet_client=None if self._address is None else self._kubelet_client(cluster),
        )

    @staticmethod
    def _kubelet_client(cluster: Authority) -> KeyPair:
        """Who the API server is to a kubelet, for logs and exec: one who may all."""
        return cluster.client("kubelet-client", user="splitwatt-lab-apiserver", groups=["system:masters"])

    def _write_kubeconfigs(self) -> None:
        for name, pair in self._users.items():
            kubeconfig.write_for_certificate(
                self._kubeconfig_of(name), server=self.url, authority=self._places.cluster_authority, client=pair
            )
        self._places.scheduler_config.write_text(components.scheduler_config(self._kubeconfig_of(Component.SCHEDULER)))

    def _kubeconfig_of(self, name: str) -> Path:
        return self.directory / f"{name}.kubeconfig"

    def _arguments(self, component: Component, port: int) -> Sequence[str]:
        if component is Component.ETCD:
            return components.etcd(self._places, port=port)
        if component is Component.API_SERVER:
            return components.api_server(self._places, port=port, etcd_port=self._ports[Component.ETCD])
        command = {
            Component.CONTROLLER_MANAGER: components.controller_manager,
            Component.SCHEDULER: components.scheduler,
            Component.KWOK: components.kwok,
        }[component]
        return command(self._places, port=port, kubeconfig=self._kubeconfig_of(component))

    def _first_start(self, component: Component) -> None:
        _, self._ports[component] = start_server(
            self.group,
            component.value,
            lambda port: [self.tools[component.value], *self._arguments(component, port)],
            healthy=partial(self._healthy, component),
            port=self._fixed.get(component),
            log=self.log(component),
        )

    def _healthy(self, component: Component, port: int) -> bool:
        scheme = "http" if component is Component.KWOK else "https"
        return answers(self._probe(component), f"{scheme}://{LOOPBACK}:{port}{_HEALTH[component]}")

    def _probe(self, component: Component) -> httpx.Client:
        if component not in self._probes:
            self._probes[component] = httpx.Client(verify=self._ssl(component), timeout=_PROBE_S, trust_env=False)
        return self._probes[component]

    def _ssl(self, component: Component | None = None) -> ssl.SSLContext:
        """Trust and identity for one component's port."""
        if component is Component.ETCD:
            authority, pair = self._places.etcd_authority, self._places.etcd_client
        else:
            authority, pair = self._places.cluster_authority, self._users["admin"]
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(pair.certificate, pair.key)
        return context

    def _release_node_leases(self) -> None:
        """kwok takes a new identity at every start and would wait for its own leases of before to run out (40 s)."""
        for lease in self._request("GET", _NODE_LEASES)["items"]:
            if lease["spec"].get("holderIdentity") not in (None, lease["metadata"]["name"]):  # a kubelet's bears its name
                self._request("PATCH", f"{_NODE_LEASES}/{lease['metadata']['name']}", {"spec": {"holderIdentity": None}})

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        content = None if body is None else json.dumps(body)
        send = partial(self._http.request, method, path, content=content, headers={"Content-Type": kind})
        try:
            try:
                response = send()
            except httpx.RemoteProtocolError:
                if method != "GET":
                    raise
                response = send()  # it hung up on a connection that it had kept: reading again harms nobody
        except httpx.TransportError as error:
            raise LabError(f"{method} {path} failed: {error} (log: {self.log(Component.API_SERVER)})") from error
        answer: dict[str, Any] = response.json()
        if response.is_error:
            raise LabError(f"{method} {path} was refused: {answer.get('message', response.reason_phrase)}")
        return answer

    def _await_default_account(self) -> None:
        """Pods are refused until the controller-manager has made their namespace's service account."""
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        self.group[Component.CONTROLLER_MANAGER].await_ready(lambda: self._http.get(path).status_code == 200, timeout_s=READY_S)
