"""Whoever speaks to an agent over its own connection: with a token for one node, to the certificate that its status names."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from splitwatt_core.protocol.stream import audience_of
from splitwatt_lab.controlplane import ControlPlane

NODE_POWERS = "/apis/splitwatt.io/v1alpha1/nodepowers"


def token(plane: ControlPlane, namespace: str, account: str, audience: str) -> str:
    answer = plane.http.post(
        f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token",
        json={
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": 3600},
        },
    )
    assert answer.is_success, answer.text
    return str(answer.json()["status"]["token"])


def pinned(endpoint: dict[str, str]) -> ssl.SSLContext:
    """Takes the very certificate that the status names, and no other."""
    host, _, port = endpoint["address"].rpartition(":")
    found = ssl.get_server_certificate((host, int(port)))
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(found)).hexdigest() == endpoint["certificateSHA256"]
    context = ssl.create_default_context(cadata=found)
    context.check_hostname = False
    return context


class Site(Protocol):
    @property
    def plane(self) -> ControlPlane: ...

    @property
    def namespace(self) -> str: ...


@dataclass
class Caller:
    """The operator's account of a site, towards one node's agent."""

    site: Site
    node: str
    account: str = "splitwatt-operator"

    def client(self, *, bearer: str | None = None) -> httpx.Client:
        answer = self.site.plane.http.get(f"{NODE_POWERS}/{self.node}")
        assert answer.is_success, answer.text
        endpoint = answer.json()["status"]["stream"]
        own = token(self.site.plane, self.site.namespace, self.account, audience_of(self.node)) if bearer is None else bearer
        return httpx.Client(
            base_url=f"https://{endpoint['address']}",
            verify=pinned(endpoint),
            headers={"Authorization": f"Bearer {own}"},
            timeout=30.0,
        )

    def brake(self, grant: int, **order: Any) -> httpx.Response:
        with self.client() as client:
            return client.post("/v1/brake", json={"grant": grant, **order})
