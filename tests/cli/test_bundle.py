"""`splitwatt support-bundle`: a secret that was planted anywhere is in no byte of the archive, and what helps is."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from splitwatt_cli.bundle.command import objects_of, write
from splitwatt_cli.bundle.redact import REDACTED, redact, redact_text
from support.cli_objects import budget, facts, gpu, healthy, node_power

SECRET = "s3cr3t-Watt-9f31"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "planted",
    [
        {"env": [{"name": "HF_TOKEN", "value": SECRET}]},
        {"env": [{"name": "PLAIN", "value": SECRET}]},
        {"args": [f"--prometheus-header=X-Scope={SECRET}"]},
        {"args": ["--prometheus-header", f"X-Scope={SECRET}"]},
        {"args": ["--api-key", SECRET]},
        {"command": ["sh", "-c", f"export PASSWORD={SECRET}; serve"]},
        {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": f'{{"x":"{SECRET}"}}'}}},
        {"metadata": {"annotations": {"example.com/token": SECRET}}},
        {"metadata": {"managedFields": [{"x": SECRET}]}},
        {"data": {"anything": SECRET}},
        {"stringData": {"anything": SECRET}},
        {"spec": {"adminPassword": SECRET}},
        {"message": f"GET https://user:{SECRET}@prometheus:9090 failed"},
        {"message": f"Authorization: Bearer {SECRET}abcdef"},
        {"message": f'{{"token": "{SECRET}"}}'},
        {"message": f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----"},
    ],
)
def test_a_secret_is_taken_out_wherever_it_stands(planted: dict[str, Any]) -> None:
    told = json.dumps(redact(planted))
    assert SECRET not in told
    assert REDACTED in told or "metadata" in planted


def test_tokens_go_by_their_form_out_of_any_text() -> None:
    assert redact_text(f"watch failed for {JWT} (401)") == f"watch failed for {REDACTED} (401)"
    assert redact_text("pulled with hf_AbCdEfGhIjKlMnOpQr") == f"pulled with {REDACTED}"


@pytest.mark.parametrize(
    "kept",
    [
        {"args": ["--prometheus-url=http://prometheus:9090", "--agent-silence-seconds=5"]},
        {"args": ["--prometheus-token-file=/etc/splitwatt/prometheus/token"]},
        {"env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]},
        {"volumes": [{"name": "v", "secret": {"secretName": "prometheus-access"}}]},
        {"message": "charged 26844 W of 27150 W: minimum caps need 900 W more than the limit"},
        {"metadata": {"uid": "404906a3-e936-430f-b217-e63b3b603711", "annotations": {"splitwatt.io/power-budget": "rack-a1"}}},
    ],
)
def test_what_helps_stays(kept: dict[str, Any]) -> None:
    assert redact(kept) == kept


def test_no_planted_secret_is_in_any_byte_of_the_archive(tmp_path: Path) -> None:
    container = {"name": "operator", "image": f"r/splitwatt-operator:{1}", "env": [{"name": "TOKEN", "value": SECRET}]}
    container["args"] = [f"--prometheus-header=Authorization=Bearer {SECRET}"]
    deployment = {"metadata": {"name": "splitwatt-operator"}, "spec": {"template": {"spec": {"containers": [container]}}}}
    event = {"reason": "X", "note": f"password={SECRET}", "regarding": {}}
    marked = budget("rack-a1", rack="a1", annotations={"kubectl.kubernetes.io/last-applied-configuration": SECRET})
    seen = healthy(budgets=(marked,), deployments=(deployment,), events=(event,), node_powers=(node_power("n1", gpu()),))
    out = tmp_path / "b.tar.gz"
    write(out, objects_of(facts(seen)))
    with tarfile.open(out) as archive:
        texts = {entry.name: archive.extractfile(entry).read().decode() for entry in archive}  # type: ignore[union-attr]
    assert not any(SECRET in text for text in texts.values())
    assert "rack-a1" in texts["b/objects/powerbudgets.json"] and "splitwatt-operator:1" in texts["b/versions.json"]
    assert {"b/doctor.json", "b/status.json", "b/events.json", "b/unread.json"} <= texts.keys()
    assert out.stat().st_mode & 0o077 == 0, "for its owner alone"
