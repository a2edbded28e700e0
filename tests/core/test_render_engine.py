"""An engine's pod: where weights come from, how patient probes are, and how long it stays when it is told to go."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.clusters import (
    PAIR,
    ClusterSpec,
    EngineSpec,
    EngineType,
    KvTransferSpec,
    ModelSource,
    ProbeSpec,
    Role,
    RoleSpec,
    SpecError,
)
from splitwatt_core.rendering.engine import DRAIN_SCRIPT, KV_LEASE_S
from splitwatt_core.rendering.render import RenderContext, render

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def cluster(**changes: Any) -> ClusterSpec:
    pool = RoleSpec(1, 8)
    spec = ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model=MODEL, engine=EngineSpec(EngineType.VLLM),
        prefill=pool, decode=pool,
    )  # fmt: skip
    return replace(spec, **changes)


def pod(spec: ClusterSpec, part: str = "decode") -> dict[str, Any]:
    found = {(m["kind"], m["metadata"]["name"]): m for m in render(spec, RenderContext())}
    template: dict[str, Any] = found["Deployment", f"chat-{part}"]["spec"]["template"]["spec"]
    return template


def engine(spec: ClusterSpec, part: str = "decode") -> dict[str, Any]:
    container: dict[str, Any] = pod(spec, part)["containers"][0]
    return container


# --------------------------------------------------------------------------------------------------------------- weights


def test_a_hub_is_asked_with_a_token_and_what_it_gave_is_kept() -> None:
    spec = cluster(source=ModelSource(token_secret=("hf", "token"), cache_claim="weights"))
    env = {e["name"]: e for e in engine(spec)["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    [mount] = [m for m in engine(spec)["volumeMounts"] if m["name"] == "cache"]
    assert env["HF_HOME"]["value"] == mount["mountPath"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "weights"}} in pod(spec)["volumes"]
    assert engine(spec)["args"][0] == MODEL and "--served-model-name" not in engine(spec)["args"]


@pytest.mark.parametrize(
    ("source", "volume", "loads"),
    [
        (
            ModelSource(claim="weights", path="/llama/8b"),
            {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}},
            "/models/served/llama/8b",
        ),
        (
            ModelSource(image="registry.example.com/m:1"),
            {"image": {"reference": "registry.example.com/m:1", "pullPolicy": "IfNotPresent"}},
            "/models/served",
        ),
        (ModelSource(path="/opt/model"), None, "/opt/model"),
    ],
)
def test_weights_that_lie_somewhere_are_served_under_the_models_name(
    source: ModelSource, volume: dict[str, Any] | None, loads: str
) -> None:
    spec = cluster(source=source)
    args = engine(spec)["args"]
    assert args[0] == loads
    assert args[args.index("--served-model-name") + 1] == MODEL == spec.served_name
    volumes = [v for v in pod(spec)["volumes"] if v["name"] == "model"]
    mounts = [m for m in engine(spec)["volumeMounts"] if m["name"] == "model"]
    if volume is None:
        assert not volumes and not mounts
    else:
        assert volumes == [{"name": "model", **volume}]
        assert mounts == [{"name": "model", "mountPath": "/models/served", "readOnly": True}]


def test_a_users_own_name_for_the_model_stands() -> None:
    for args in (("--served-model-name", "mine", "other"), ("--served_model_name=mine",)):
        spec = cluster(source=ModelSource(path="/opt/model"), engine=EngineSpec(EngineType.VLLM, args=args))
        assert spec.served_name == "mine"
        assert MODEL not in engine(spec)["args"]


def test_emulated_engines_have_no_weights() -> None:
    source = ModelSource(token_secret=("hf", "token"), cache_claim="weights", claim="c", path="p")
    emulated = cluster(engine=EngineSpec(EngineType.EMULATED), source=source)
    assert pod(emulated) == pod(replace(emulated, source=ModelSource()))


# ---------------------------------------------------------------------------------------------------------------- probes


def test_a_starved_engine_is_not_killed() -> None:
    live = engine(cluster())["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= 600
    probes = ProbeSpec(startup_s=7205, unready_s=7, restart_s=60)
    made = engine(cluster(engine=EngineSpec(EngineType.VLLM, probes=probes)))
    for name, within_s in (("startupProbe", 7205), ("readinessProbe", 7), ("livenessProbe", 60)):
        patience_s = made[name]["periodSeconds"] * made[name]["failureThreshold"]
        assert within_s <= patience_s < within_s + made[name]["periodSeconds"]


def test_class_and_secrets_are_of_engines_and_router_alike() -> None:
    spec = cluster(priority_class="gold", image_pull_secrets=("key",))
    for part in ("prefill", "decode", "router"):
        assert pod(spec, part)["priorityClassName"] == "gold"
        assert pod(spec, part)["imagePullSecrets"] == [{"name": "key"}]
        assert not pod(cluster(), part).keys() & {"priorityClassName", "imagePullSecrets"}


# ----------------------------------------------------------------------------------------------------------- KV transfer


def test_a_cache_that_does_not_come_is_computed_again_or_not() -> None:
    def config(spec: ClusterSpec, part: str) -> dict[str, Any]:
        args = engine(spec, part)["args"]
        found: dict[str, Any] = json.loads(args[args.index("--kv-transfer-config") + 1])
        return found

    assert config(cluster(), "decode")["kv_load_failure_policy"] == "recompute"
    assert config(cluster(kv_transfer=KvTransferSpec(recompute=False)), "decode")["kv_load_failure_policy"] == "fail"
    assert "kv_load_failure_policy" not in config(cluster(), "prefill"), "it loads none"


@pytest.mark.parametrize(("prefill", "decode", "fits"), [(8, 8, True), (8, 4, True), (2, 8, True), (8, 3, False), (6, 4, False)])
def test_groups_that_share_out_the_heads_unevenly_are_refused(prefill: int, decode: int, fits: bool) -> None:
    spec = cluster(prefill=RoleSpec(1, prefill), decode=RoleSpec(1, decode))
    if fits:
        assert render(spec, RenderContext())
        return
    with pytest.raises(SpecError, match=rf"gpusPerReplica {prefill} and .*gpusPerReplica {decode} must divide one another"):
        render(spec, RenderContext())


# ----------------------------------------------------------------------------------------------------------------- drain


@pytest.mark.parametrize("role", PAIR)
def test_a_pod_stays_until_its_requests_and_its_caches_are_done(role: Role) -> None:
    spec = cluster(prefill=RoleSpec(1, 8, drain_s=90), decode=RoleSpec(1, 8, drain_s=90))
    command = engine(spec, role)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python3", "-c", DRAIN_SCRIPT] and command[-1] == "90"
    assert float(command[-2]) >= (KV_LEASE_S if role is Role.PREFILL else 1)
    assert pod(spec, role)["terminationGracePeriodSeconds"] > 90, "else it is killed in the middle"
    assert pod(cluster(), role)["terminationGracePeriodSeconds"] > float(command[-2])


def test_a_longer_lease_keeps_prefill_longer() -> None:
    spec = cluster(kv_transfer=KvTransferSpec(extra_config={"kv_lease_duration": 120}))
    assert engine(spec, "prefill")["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["120", "120"]
    assert pod(spec, "prefill")["terminationGracePeriodSeconds"] > 120
    assert engine(spec)["lifecycle"] == engine(cluster())["lifecycle"], "nobody fetches from decode"


@pytest.fixture
def busy_engine() -> Iterator[tuple[str, list[float]]]:
    """Its /metrics say how many requests run: the numbers of the list, one a look, then none."""
    running = [2.0, 1.0]

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count = running.pop(0) if running else 0.0
            page = f'vllm:num_requests_running{{engine="0"}} {count}\nvllm:num_requests_waiting{{engine="0"}} 0.0\n'.encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics", running
        server.shutdown()


def drained_s(url: str, least_s: float, most_s: float) -> float:
    begun_s = time.monotonic()
    command = [sys.executable, "-c", DRAIN_SCRIPT, url, str(least_s), str(most_s)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    return time.monotonic() - begun_s


def test_the_hook_ends_with_the_last_request_and_within_its_bounds(busy_engine: tuple[str, list[float]]) -> None:
    url, running = busy_engine
    assert 2.0 <= drained_s(url, 0, 30) < 20.0
    assert not running
    running += [1.0] * 1000
    assert 3.0 <= drained_s(url, 0, 3) < 20.0, "no longer than it may"
    assert running
    assert 1.0 <= drained_s("http://127.0.0.1:1/metrics", 1, 30) < 15.0, "an engine that is gone has no request"
