"""The API server under real tokens of the chart's service accounts."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import yaml
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.install import NAMESPACE

APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Caller:
    """The API server under one token of a service account."""

    http: httpx.Client
    manager: str

    def patch(self, path: str, body: Any, kind: str = APPLY) -> httpx.Response:
        params = {"fieldManager": self.manager, "force": "true"} if kind == APPLY else {"fieldManager": self.manager}
        return self.http.patch(path, params=params, content=json.dumps(body), headers={"Content-Type": kind})


def caller(plane: ControlPlane, account: str, *, bound_to: Mapping[str, Any] | None = None) -> Caller:
    """`bound_to`: the Node or pod that the token names."""
    spec = {"expirationSeconds": 3600, **({"boundObjectRef": dict(bound_to)} if bound_to else {})}
    url = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    token = plane.http.post(url, json=body).raise_for_status().json()["status"]["token"]
    config = yaml.safe_load(plane.token_kubeconfig(NAMESPACE, account).read_text())
    trust = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])
    return Caller(httpx.Client(base_url=plane.url, verify=trust, headers={"Authorization": f"Bearer {token}"}), account)


def refused(answer: httpx.Response, says: str) -> None:
    assert answer.status_code == 403, answer.text
    assert says in answer.json()["message"]


def taken(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code in (200, 201), answer.text
    body: dict[str, Any] = answer.json()
    return body
