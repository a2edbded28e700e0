"""A driver of dynamic resource allocation over the node's GPUs: what NVIDIA's does, in small. Runs in the agent's image.

It offers DEVICES (UUIDs) of NODE in a ResourceSlice of driver `gpu.nvidia.com`, the UUID as an attribute, as that one does. The
scheduler allocates; the kubelet asks to prepare a claim, and is told the devices that stand in the claim's own status. What
containers then see of a GPU is CDI's part, which this leaves to the pod. Imports nothing of the product.

Order: the socket first, then the slice, for a kubelet removes the slices of a driver that it does not know.
Sources: k8s.io/kubelet/pkg/apis/dra/v1/api.proto, pkg/apis/pluginregistration/v1/api.proto; KEP-4381.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

from ground.wire import BOOL, TEXT, Field, message_classes

DRIVER = "gpu.nvidia.com"
REGISTRY = Path("/var/lib/kubelet/plugins_registry")
PLUGINS = Path("/var/lib/kubelet/plugins")
RESOURCE_API = "/apis/resource.k8s.io/v1"
REQUEST_S = 10.0
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

REGISTRATION: dict[str, list[Field]] = {
    "InfoRequest": [],
    "PluginInfo": [("type", 1, TEXT, False), ("name", 2, TEXT, False), ("endpoint", 3, TEXT, False),
                   ("supported_versions", 4, TEXT, True)],
    "RegistrationStatus": [("plugin_registered", 1, BOOL, False), ("error", 2, TEXT, False)],
    "RegistrationStatusResponse": [],
}  # fmt: skip
DRA_PACKAGE = "k8s.io.kubelet.pkg.apis.dra.v1"
DRA: dict[str, list[Field]] = {
    "Claim": [("namespace", 1, TEXT, False), ("uid", 2, TEXT, False), ("name", 3, TEXT, False)],
    "Device": [("request_names", 1, TEXT, True), ("pool_name", 2, TEXT, False), ("device_name", 3, TEXT, False)],
    "Claims": [("claims", 1, "Claim", True)],
    "Prepared": [("devices", 1, "Device", True), ("error", 2, TEXT, False)],
    "PreparedPair": [("key", 1, TEXT, False), ("value", 2, "Prepared", False)],
    "PreparedClaims": [("claims", 1, "PreparedPair", True)],
    "Unprepared": [("error", 1, TEXT, False)],
    "UnpreparedPair": [("key", 1, TEXT, False), ("value", 2, "Unprepared", False)],
    "UnpreparedClaims": [("claims", 1, "UnpreparedPair", True)],
}
"""Messages go by their shapes, not their names, which gRPC does not send."""
R, M = message_classes("pluginregistration", REGISTRATION), message_classes(DRA_PACKAGE, DRA)


def api(method: str, path: str, body: Any = None) -> Any:
    """Raises OSError (urllib's errors are some)."""
    host = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    headers = {"Authorization": f"Bearer {(_ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(host + path, data=data, method=method, headers=headers)
    with urllib.request.urlopen(
        request, timeout=REQUEST_S, context=ssl.create_default_context(cafile=_ACCOUNT / "ca.crt")
    ) as said:
        return json.load(said)


def allocated(claim: Any) -> list[Any]:
    """Devices of ours that a ResourceClaim got, as the kubelet wants to hear of them."""
    found = api("GET", f"{RESOURCE_API}/namespaces/{claim.namespace}/resourceclaims/{claim.name}")
    if found["metadata"]["uid"] != claim.uid:
        raise ValueError(f"{claim.namespace}/{claim.name} is another claim by now")
    results = found["status"]["allocation"]["devices"]["results"]
    return [
        M["Device"](request_names=[each["request"]], pool_name=each["pool"], device_name=each["device"])
        for each in results
        if each["driver"] == DRIVER
    ]


class Driver:
    def __init__(self, endpoint: Path) -> None:
        self._endpoint = endpoint
        self.registered = asyncio.Event()

    def __mapping__(self) -> dict[str, Handler]:
        unary = Cardinality.UNARY_UNARY
        info, dra = "/pluginregistration.Registration", f"/{DRA_PACKAGE}.DRAPlugin"
        return {
            f"{info}/GetInfo": Handler(self._info, unary, R["InfoRequest"], R["PluginInfo"]),
            f"{info}/NotifyRegistrationStatus": Handler(
                self._notified, unary, R["RegistrationStatus"], R["RegistrationStatusResponse"]
            ),
            f"{dra}/NodePrepareResources": Handler(self._prepare, unary, M["Claims"], M["PreparedClaims"]),
            f"{dra}/NodeUnprepareResources": Handler(self._unprepare, unary, M["Claims"], M["UnpreparedClaims"]),
        }

    async def _info(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        versions = ["v1.DRAPlugin"]
        await stream.send_message(
            R["PluginInfo"](type="DRAPlugin", name=DRIVER, endpoint=str(self._endpoint), supported_versions=versions)
        )

    async def _notified(self, stream: Stream[Any, Any]) -> None:
        status = await stream.recv_message()
        assert status is not None
        print(f"registered: {status.plugin_registered} {status.error}", flush=True)  # noqa: T201 - a pod's log
        if status.plugin_registered:
            self.registered.set()
        await stream.send_message(R["RegistrationStatusResponse"]())

    async def _prepare(self, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        assert request is not None
        answer = M["PreparedClaims"]()
        for claim in request.claims:
            pair = answer.claims.add(key=claim.uid)
            try:
                pair.value.devices.extend(await asyncio.to_thread(allocated, claim))
            except (OSError, KeyError, ValueError) as error:
                pair.value.error = f"{DRIVER}: {error!r}"
            print(f"prepared {claim.namespace}/{claim.name}: {pair.value}", flush=True)  # noqa: T201
        await stream.send_message(answer)

    async def _unprepare(self, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        assert request is not None
        answer = M["UnpreparedClaims"]()
        for claim in request.claims:
            answer.claims.add(key=claim.uid).value.SetInParent()
        await stream.send_message(answer)


def publish() -> None:
    """The ResourceSlice of this node. Raises OSError."""
    node, name = os.environ["NODE"], f"{os.environ['NODE']}-{DRIVER}"
    devices = [
        {"name": f"gpu-{number}", "attributes": {"uuid": {"string": uuid}, "type": {"string": "gpu"}}}
        for number, uuid in enumerate(os.environ["DEVICES"].split(","))
    ]
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": DRIVER, "nodeName": node, "pool": pool, "devices": devices}
    body = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": spec}
    try:
        api("POST", f"{RESOURCE_API}/resourceslices", body)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.CONFLICT:  # of the driver before this one: the same
            raise
    print(f"published {name}", flush=True)  # noqa: T201


async def main() -> None:
    endpoint, registration = PLUGINS / DRIVER / "dra.sock", REGISTRY / f"{DRIVER}-reg.sock"
    endpoint.parent.mkdir(exist_ok=True)
    driver = Driver(endpoint)
    servers = [Server([driver]), Server([driver])]
    for server, socket in zip(servers, (endpoint, registration), strict=True):
        socket.unlink(missing_ok=True)
        await server.start(path=str(socket))
    await driver.registered.wait()
    await asyncio.to_thread(publish)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
