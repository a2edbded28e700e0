"""The command lines of the control plane's components: pure functions from places to argument lists.

Trimmed for one machine: no leader election, no fsync (a lab's etcd is thrown away; it survives kill -9, not a power cut),
only the controllers that something here uses. Nothing that decides what is allowed is trimmed: authorization is Node and
RBAC, NodeRestriction is on, every component speaks under its own user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from splitwatt_lab.certs import KeyPair
from splitwatt_lab.ports import LOOPBACK


class Component(StrEnum):
    """In the order in which they start."""

    ETCD = "etcd"
    API_SERVER = "kube-apiserver"
    CONTROLLER_MANAGER = "kube-controller-manager"
    SCHEDULER = "kube-scheduler"
    KWOK = "kwok"


SERVICE_CIDR: Final = "10.96.0.0/16"
SERVICE_IP: Final = "10.96.0.1"
POD_CIDR: Final = "10.64.0.1/12"
ISSUER: Final = "https://kubernetes.default.svc"
KWOK_ANNOTATION: Final = "kwok.x-k8s.io/node"
NODE_LEASE_S: Final = 40

CONTROLLERS: Final = (
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "persistentvolume-binder-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "resourceclaim-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
    "taint-eviction-controller",
    "validatingadmissionpolicy-status-controller",
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything of one control plane lies. `address`, with the identity by which kubelets know the API server: where
    machines with real kubelets reach it; None when there are none."""

    etcd_data: Path
    cluster_authority: Path
    etcd_authority: Path
    etcd_server: KeyPair
    etcd_client: KeyPair
    server: KeyPair
    service_accounts: KeyPair
    scheduler_config: Path
    stages: Sequence[Path]
    address: str | None = None
    kubelet_client: KeyPair | None = None

    @property
    def tls(self) -> Sequence[str]:
        return f"--tls-cert-file={self.server.certificate}", f"--tls-private-key-file={self.server.key}"


def etcd(places: Places, *, port: int) -> Sequence[str]:
    url = f"https://{LOOPBACK}:{port}"
    # One member talks to no peer: port 0 lets the kernel choose, so it cannot collide.
    peer = f"http://{LOOPBACK}:0"
    return (
        f"--data-dir={places.etcd_data}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        f"--cert-file={places.etcd_server.certificate}",
        f"--key-file={places.etcd_server.key}",
        f"--trusted-ca-file={places.etcd_authority}",
        "--client-cert-auth",
        "--log-level=warn",
    )


def api_server(places: Places, *, port: int, etcd_port: int) -> Sequence[str]:
    return (
        *_reached(places),
        f"--secure-port={port}",
        *places.tls,
        f"--client-ca-file={places.cluster_authority}",
        f"--etcd-servers=https://{LOOPBACK}:{etcd_port}",
        f"--etcd-cafile={places.etcd_authority}",
        f"--etcd-certfile={places.etcd_client.certificate}",
        f"--etcd-keyfile={places.etcd_client.key}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={places.service_accounts.certificate}",
        f"--service-account-signing-key-file={places.service_accounts.key}",
        "--allow-privileged=true",
        "--profiling=false",
    )


def _reached(places: Places) -> Sequence[str]:
    if places.address is None or places.kubelet_client is None:
        # Loopback is refused as an endpoint address, and nobody here dials kubernetes.default.svc.
        return f"--bind-address={LOOPBACK}", f"--advertise-address={LOOPBACK}", "--endpoint-reconciler-type=none"
    return (
        "--bind-address=0.0.0.0",
        f"--advertise-address={places.address}",
        f"--kubelet-client-certificate={places.kubelet_client.certificate}",
        f"--kubelet-client-key={places.kubelet_client.key}",
        # No name server knows the nodes.
        "--kubelet-preferred-address-types=InternalIP",
    )


def controller_manager(places: Places, *, port: int, kubeconfig: Path) -> Sequence[str]:
    return (
        *_secondary(places, port=port, kubeconfig=kubeconfig),
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={places.cluster_authority}",
        f"--controllers={','.join(CONTROLLERS)}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    )


def scheduler(places: Places, *, port: int, kubeconfig: Path) -> Sequence[str]:
    return (*_secondary(places, port=port, kubeconfig=kubeconfig), f"--config={places.scheduler_config}")


def scheduler_config(kubeconfig: Path) -> str:
    return (
        "apiVersion: kubescheduler.config.k8s.io/v1\n"
        "kind: KubeSchedulerConfiguration\n"
        f"clientConnection: {{kubeconfig: {kubeconfig}, qps: 200, burst: 400}}\n"
        "leaderElection: {leaderElect: false}\n"
        "enableProfiling: false\n"
    )


def kwok(places: Places, *, port: int, kubeconfig: Path) -> Sequence[str]:
    return (
        f"--kubeconfig={kubeconfig}",
        f"--manage-nodes-with-annotation-selector={KWOK_ANNOTATION}=fake",
        f"--node-lease-duration-seconds={NODE_LEASE_S}",
        f"--cidr={POD_CIDR}",
        f"--node-ip={LOOPBACK}",
        f"--server-address={LOOPBACK}:{port}",
        *(f"--config={stage}" for stage in places.stages),
    )


def _secondary(places: Places, *, port: int, kubeconfig: Path) -> Sequence[str]:
    return (
        f"--bind-address={LOOPBACK}",
        f"--secure-port={port}",
        *places.tls,
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--authentication-skip-lookup",
        "--profiling=false",
    )
