"""LeaderWorkerSet's own controller and webhooks as a process before a control plane without a network for pods."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from ground import lws
from splitwatt_lab.certs import Authority
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_lab.toolchain import tools_directory
from support.waiting import eventually

LABEL: Final = "leaderworkerset.sigs.k8s.io"
_DEFINITION: Final = "leaderworkersets.leaderworkerset.x-k8s.io"
_CONFIGURATIONS: Final = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")


@contextmanager
def controlled(plane: ControlPlane, folder: Path) -> Iterator[Process]:
    """Its definitions, its webhooks and the controller, and nothing of them afterwards. Skips where it was not built."""
    program, manifests = (tools_directory(lws.TOOLS, lws.PINS) / name for name in ("lws", "lws.yaml"))
    if not program.is_file() or not manifests.is_file():
        pytest.skip("not run: LeaderWorkerSet's controller is not built; `make e2e ARGS='-k two_nodes'` on kind builds it")
    documents = re.split(r"^---\n", manifests.read_text(), flags=re.MULTILINE)
    definitions = "---\n".join(text for text in documents if re.search("^kind: CustomResourceDefinition$", text, re.MULTILINE))
    authority = Authority(folder / "certificates", "lws")
    pair = authority.server("tls", dns_names=["localhost"], addresses=["127.0.0.1"])
    port = free_port()
    hooks = [
        _reached_at(yaml.safe_load(text), port, authority.certificate)
        for text in documents
        if any(re.search(f"^kind: {kind}$", text, re.MULTILINE) for kind in _CONFIGURATIONS)
    ]
    settings = folder / "settings.json"
    settings.write_text(json.dumps(_settings(port, pair.certificate.parent)))
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=definitions)
    try:
        with ProcessGroup(folder) as group:
            controller = group.start("lws", [str(program), "--config", str(settings), "--kubeconfig", str(plane.kubeconfig)])
            for hook in hooks:
                plane.kubectl("apply", "-f", "-", stdin=json.dumps(hook))
            trial = lws.leader_worker_set(
                "trial", "default", size=1, labels={}, spec={"containers": [{"name": "c", "image": "i"}]}
            )

            def answers() -> bool:
                assert controller.running, controller.log.read_text()[-4000:]
                asked = plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(trial), check=False)
                return asked.returncode == 0

            eventually("its webhooks answer", answers)
            yield controller
            # While somebody serves the kind: what waits for its dependents to go is then let go.
            plane.kubectl("delete", "leaderworkersets", "--all", "-A", "--wait=false")
            eventually("no set is left", lambda: not plane.http.get(f"/apis/{lws.API}/leaderworkersets").json()["items"])
    finally:
        for hook in hooks:
            plane.kubectl("delete", hook["kind"], hook["metadata"]["name"], "--ignore-not-found")
        plane.kubectl("delete", "-f", "-", "--ignore-not-found", "--wait=false", stdin=definitions)
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{_DEFINITION}"
        eventually("its definition is gone", lambda: plane.http.get(path).status_code == 404)


def _settings(port: int, certificates: Path) -> dict[str, Any]:
    return {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(certificates)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{free_port()}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
    }


def _reached_at(configuration: dict[str, Any], port: int, authority: Path) -> dict[str, Any]:
    """By address, for the Service of its manifests leads nowhere here."""
    bundle = base64.b64encode(authority.read_bytes()).decode()
    for hook in configuration["webhooks"]:
        path = hook["clientConfig"]["service"]["path"]
        hook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle}
    return configuration
