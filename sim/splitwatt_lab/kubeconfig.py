"""Kubeconfig files, self-contained but for the paths of certificates. Written as JSON, which is YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitwatt_lab.certs import KeyPair


def write_for_certificate(path: Path, *, server: str, authority: Path, client: KeyPair, namespace: str = "default") -> Path:
    user = {"client-certificate": str(client.certificate), "client-key": str(client.key)}
    return _write(path, server=server, authority=authority, user=user, namespace=namespace)


def write_for_token(path: Path, *, server: str, authority: Path, token: str, namespace: str = "default") -> Path:
    return _write(path, server=server, authority=authority, user={"token": token}, namespace=namespace)


def _write(path: Path, *, server: str, authority: Path, user: Mapping[str, str], namespace: str) -> Path:
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "lab", "user": dict(user)}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab", "namespace": namespace}}],
        "current-context": "lab",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1) + "\n")
    return path
