"""What a site has before Splitwatt comes: meters, and a Prometheus that finds pods by their Services.

Prometheus and the meter run on this machine and are dialled by pods at `Cluster.address_of_host`. Debian's Prometheus is too old
to ask Kubernetes for targets itself, so they are written to it from EndpointSlices, once a second.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from splitwatt_core.names import (
    L_CLUSTER,
    L_NAMESPACE,
    L_ROLE,
    LABEL_CLUSTER,
    LABEL_RACK,
    LABEL_ROLE,
    M_RACK_POWER_WATTS,
)
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_nvml_twin.plant import RackPlant

from ground.cluster import Cluster

NAMESPACE: Final = "splitwatt-system"
LOOK_S: Final = 1.0
_PORTS: Final = ("metrics", "http")
_SERVICES: Final[Mapping[str, str]] = {"splitwatt-operator": "operator", "splitwatt-agent": "agent"}


class Meters:
    """Each rack's true watts, as a meter exporter of the site tells them. `racks`: which nodes hang on each; who moves a node
    moves it here too."""

    def __init__(self, cluster: Cluster, racks: Mapping[str, list[str]], plant: RackPlant) -> None:
        self._cluster = cluster
        self.racks = racks
        self._plant = plant
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(0, addr="127.0.0.1", registry=registry)
        self.port: int = self._server.server_port

    def collect(self) -> list[GaugeMetricFamily]:
        family = GaugeMetricFamily(M_RACK_POWER_WATTS, "What the rack draws", labels=["rack"])
        for rack, nodes in self.racks.items():
            watts = [sum(self._cluster.twin(node).read_power_w()) for node in nodes]
            family.add_metric([rack], self._plant.true_w(watts))
        return [family]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()


class Metering:
    """Prometheus with its targets, and the meters."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.plant = RackPlant()
        nodes = {name: _labels(cluster, name).get(LABEL_RACK, "") for name in cluster.nodes()}
        racks = {rack: [name for name in nodes if nodes[name] == rack] for rack in sorted(set(nodes.values())) if rack}
        self.meters = Meters(cluster, racks, self.plant)
        folder = cluster.scratch / "metering"
        self._group = ProcessGroup(folder).__enter__()
        self.prometheus = PrometheusServer(self._group, folder, listen="0.0.0.0")
        self.prometheus.start()
        self.prometheus.set_targets("twin", {f"127.0.0.1:{self.meters.port}": {}})
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._find_targets, name="targets", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """As pods dial it."""
        return f"http://{self._cluster.address_of_host}:{self.prometheus.port}"

    def _find_targets(self) -> None:
        try:
            while not self._stop.wait(LOOK_S):
                self._look()
        except BaseException as error:  # noqa: BLE001 - kept for `close`, which raises it
            self.failure = error

    def _look(self) -> None:
        found = self._cluster.kubectl("get", "endpointslices", "-A", "-o", "json", check=False)
        if found.returncode != 0:
            return  # the API server is away, perhaps on purpose: targets stay
        targets: dict[str, dict[str, Mapping[str, str]]] = {"operator": {}, "agent": {}}
        engines: dict[str, Mapping[str, str]] = {}
        for piece in json.loads(found.stdout)["items"]:
            labels = piece["metadata"].get("labels", {})
            job = _SERVICES.get(labels.get("kubernetes.io/service-name", ""))
            for address, pod, node in _endpoints(piece):
                if job is not None:
                    targets[job][address] = {"node": node} if job == "agent" else {}
                elif LABEL_CLUSTER in labels and LABEL_ROLE in labels:
                    engines[address] = {
                        L_NAMESPACE: piece["metadata"]["namespace"],
                        L_CLUSTER: labels[LABEL_CLUSTER],
                        L_ROLE: labels[LABEL_ROLE],
                        "pod": pod,
                    }
        for name, addresses in targets.items():
            self.prometheus.set_targets(name, addresses)
        self.prometheus.set_targets("twin", {f"127.0.0.1:{self.meters.port}": {}, **engines})

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._group.close()
        self.meters.close()
        if self.failure is not None:
            raise self.failure


def _endpoints(piece: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(address with port, pod, node) of each endpoint of a slice."""
    port = next((each["port"] for each in piece.get("ports") or () if each.get("name") in _PORTS), None)
    return [
        (f"{address}:{port}", (endpoint.get("targetRef") or {}).get("name", ""), endpoint.get("nodeName", ""))
        for endpoint in piece.get("endpoints") or ()
        for address in endpoint["addresses"]
        if port is not None and piece["addressType"] == "IPv4"
    ]


def _labels(cluster: Cluster, node: str) -> Mapping[str, str]:
    labels: Mapping[str, str] = json.loads(cluster.kubectl("get", "node", node, "-o", "json").stdout)["metadata"]["labels"]
    return labels
