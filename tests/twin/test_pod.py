"""The emulated engine in a pod of its own: the process that the image runs, with the arguments that are rendered."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, KvTransferSpec, Role, RoleSpec
from splitwatt_core.rendering.engine import PROBE_PATH, engine_args
from splitwatt_nvml_twin.handle import STATE_FILE_VARIABLE, Demand, NodeTwin
from splitwatt_nvml_twin.models import H100_SXM
from splitwatt_twin.pod.api import Refusal, read
from splitwatt_twin.pod.flags import EngineSettings, parse
from support.waiting import PATIENCE_S, eventually

MODEL: Final = "meta-llama/Llama-3.1-70B-Instruct"
PROMPT: Final = "Say how a watt is kept. " * 200  # 1200 tokens


def rendered(role: Role, *, port: int, args: Sequence[str] = ()) -> list[str]:
    """What the operator writes into a pod of this role."""
    gpus = RoleSpec(replicas=1, gpus_per_replica=8)
    return engine_args(
        ClusterSpec(
            namespace="serving", name="chat", uid="u", generation=1, model=MODEL, prefill=gpus, decode=gpus,
            engine=EngineSpec(type=EngineType.EMULATED, port=port, args=tuple(args)), kv_transfer=KvTransferSpec(),
        ),
        role,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pod:
    """One process; `args` come after `--host 127.0.0.1`."""

    def __init__(self, folder: Path, args: Sequence[str], *, port: int, env: dict[str, str] | None = None) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)
        self._log = folder / f"{port}.log"
        command = [sys.executable, "-m", "splitwatt_twin.pod", *args, "--host", "127.0.0.1"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env=env)
        eventually("the pod is healthy or has ended", lambda: self.healthy() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def healthy(self) -> bool:
        try:
            return self.client.get(PROBE_PATH).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def metric(self, name: str) -> float:
        text = self.client.get("/metrics").text
        values = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels["model_name"] == MODEL and sample.labels["engine"] == "0"
        ]
        assert values, f"{name} is not in\n{text}"
        return values[0]

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    pods: list[Pod] = []

    def begin(role: Role, *, args: Sequence[str] = (), env: dict[str, str] | None = None) -> Pod:
        port = free_port()
        pods.append(Pod(tmp_path, rendered(role, port=port, args=args), port=port, env=env))
        return pods[-1]

    yield begin
    for pod in pods:
        pod.end()


def test_a_decode_pod_answers_counts_and_ends(start: Callable[..., Pod]) -> None:
    pod = start(Role.DECODE, args=["--enable-prefix-caching", "--max_num_seqs=64"])
    assert "without effect on an emulated engine: --enable-prefix-caching --max-num-seqs" in pod.log
    assert [row["id"] for row in pod.client.get("/v1/models").json()["data"]] == [MODEL]

    begun_s = time.monotonic()
    answer = pod.ask(model=MODEL, prompt=PROMPT, max_tokens=60)
    took_s = time.monotonic() - begun_s
    assert answer["choices"][0]["text"].split() == ["watt"] * 60
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 1200, "completion_tokens": 60, "total_tokens": 1260}
    # 8 H100: a prompt of 1200 tokens takes tens of milliseconds, a token some more than ten.
    assert pod.metric("vllm:time_to_first_token_seconds_sum") > 0.02
    assert took_s >= pod.metric("vllm:e2e_request_latency_seconds_sum") > 0.5

    chat = pod.ask("/v1/chat/completions", messages=[{"role": "user", "content": PROMPT}], max_completion_tokens=5)
    assert chat["object"] == "chat.completion" and chat["choices"][0]["message"]["content"].count("watt") == 5
    assert pod.metric("vllm:request_success_total") == 2
    assert pod.metric("vllm:generation_tokens_total") == 65
    assert pod.metric("vllm:prompt_tokens_total") == 1200 + chat["usage"]["prompt_tokens"]
    assert pod.metric("vllm:inter_token_latency_seconds_count") == 59 + 4
    assert pod.metric("vllm:num_requests_running") == pod.metric("vllm:kv_cache_usage_perc") == 0

    with ThreadPoolExecutor(1) as pool:  # what is in flight ends before the process does
        late = pool.submit(pod.ask, prompt=[1] * 100, max_tokens=40)
        eventually("it runs", lambda: pod.metric("vllm:num_requests_running") == 1)
        pod.process.send_signal(signal.SIGTERM)
        assert late.result(PATIENCE_S)["usage"]["completion_tokens"] == 40
    assert pod.process.wait(PATIENCE_S) == 0, pod.log
    assert "Traceback" not in pod.log


def test_tokens_are_streamed_as_they_come(start: Callable[..., Pod]) -> None:
    pod = start(Role.DECODE)
    body = {"prompt": PROMPT, "max_tokens": 80, "stream": True, "stream_options": {"include_usage": True}}
    arrived_s: list[float] = []
    lines: list[str] = []
    with pod.client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line:
                arrived_s.append(time.monotonic())
                lines.append(line.removeprefix("data: "))
    assert lines.pop() == "[DONE]"
    frames: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert frames.pop()["usage"]["completion_tokens"] == 80
    texts = [frame["choices"][0]["text"] for frame in frames]
    assert len(texts) > 5 and "".join(texts).count("watt") == 80
    assert [frame["choices"][0]["finish_reason"] for frame in frames] == [None] * (len(frames) - 1) + ["length"]
    assert arrived_s[-1] - arrived_s[0] > 0.3, "not all at the end"


def test_a_router_hands_a_prompt_from_prefill_to_decode(start: Callable[..., Pod]) -> None:
    prefill, decode = start(Role.PREFILL), start(Role.DECODE)
    first = prefill.ask(prompt=PROMPT, max_tokens=1, kv_transfer_params={"do_remote_decode": True, "do_remote_prefill": False})
    where = first["kv_transfer_params"]
    assert where["do_remote_prefill"] is True
    answer = decode.ask(prompt=PROMPT, max_tokens=20, kv_transfer_params=where)
    assert answer["usage"]["completion_tokens"] == 20 and answer["kv_transfer_params"] is None
    assert prefill.metric("vllm:prompt_tokens_total") == 1200
    assert decode.metric("vllm:prompt_tokens_total") == 0, "no prompt is computed twice"
    assert decode.metric("vllm:generation_tokens_total") == 20
    assert decode.metric("vllm:inter_token_latency_seconds_sum") < 5, "gaps count from the request, not from the clock's zero"


def test_a_lower_cap_makes_the_replica_slower_and_its_work_draws_power(start: Callable[..., Pod], tmp_path: Path) -> None:
    state = tmp_path / "n.state"
    with NodeTwin.create(state, gpus=[H100_SXM] * 10, boot_id="b") as node:
        node.set_demand(0, Demand(power_w=300.0))  # another replica's
        mine = ",".join(node.uuids[2:])
        env = {**os.environ, STATE_FILE_VARIABLE: str(state), "NVIDIA_VISIBLE_DEVICES": mine}
        pod = start(Role.PREFILL, env=env)

        def first_token_s() -> float:
            before = pod.metric("vllm:time_to_first_token_seconds_sum")
            pod.ask(prompt=[1] * 60_000, max_tokens=1)
            return pod.metric("vllm:time_to_first_token_seconds_sum") - before

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(first_token_s)
            eventually("eight GPUs are at work", lambda: min(t.demand_w for t in node.read_all()[2:]) > 600)
            assert [truth.demand_w for truth in node.read_all()[:2]] == [300.0, pytest.approx(H100_SXM.idle_w)]
            free_s = running.result(PATIENCE_S)
        for gpu in range(2, 10):
            node.set_outside_limit(gpu, 300_000)
        time.sleep(0.3)
        assert first_token_s() > 1.2 * free_s
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(PATIENCE_S) == 0
        assert all(truth.demand_w < 100 for truth in node.read_all()[2:]) and node.read(0).demand_w == 300.0


def test_what_the_environment_lacks_is_said_in_one_sentence(tmp_path: Path) -> None:
    """Before anything listens: a state file that is not there, too few GPUs, an address that is taken."""
    state = tmp_path / "n.state"
    NodeTwin.create(state, gpus=[H100_SXM] * 4, boot_id="b").close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = (
            (str(tmp_path / "absent"), "absent"),
            (str(state), "--tensor-parallel-size 8 needs 8 GPUs, but"),
            ("", "choose another --port"),
        )
        for path, sentence in cases:
            command = [sys.executable, "-m", "splitwatt_twin.pod", MODEL, "-tp", "8", "--host", "127.0.0.1"]
            ended = subprocess.run(
                [*command, "--port", str(port)], env={**os.environ, STATE_FILE_VARIABLE: path}, capture_output=True, text=True,
                timeout=PATIENCE_S, check=False,
            )  # fmt: skip
            assert ended.returncode == 1 and sentence in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([MODEL, "--max-num-sequences", "4"], "unrecognized arguments: --max-num-sequences"),
        ([MODEL, "--kv-transfer-confg.kv_role", "kv_both"], "unrecognized arguments: --kv-transfer-confg"),
        ([MODEL, "--kv-transfer-config", '{"kv_role":"producer"}'], "kv_role must be one of kv_producer, kv_consumer, kv_both"),
        ([MODEL, "--kv-transfer-config", "{kv_role"], "--kv-transfer-config is no JSON"),
        ([MODEL, "-tp", "0"], "must lie between 1 and 16, not 0"),
        ([MODEL, "--gpu-memory-utilization", "90"], "must be above 0 and at most 1"),
        (["--port", "80"], "name the model"),
    ],
)
def test_a_line_that_vllm_would_not_take_is_refused(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(args)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_flags_are_spelt_as_vllm_lets_them_be_spelt() -> None:
    line = [
        "--model", MODEL, "--served_model_name", "a", "b", "-tp", "4", "--no-enable-prefix-caching", "--seed=3",
        "--kv-transfer-config.kv_connector", "NixlConnector", "--kv_transfer_config.kv_role=kv_both",
        "--compilation-config.level", "3", "--lora-modules", "x=y", "z=w",
    ]  # fmt: skip
    assert parse(line) == EngineSettings(
        model=MODEL, served_names=("a", "b"), host="0.0.0.0", port=8000, gpus=4, memory_share=0.9, model_tokens=131_072,
        kv_role="kv_both", kv_hash=parse(["--model", MODEL]).kv_hash,
        recompute=False, ignored=("--enable-prefix-caching", "--seed", "--lora-modules", "--compilation-config"),
    )  # fmt: skip


def test_all_that_is_rendered_is_understood() -> None:
    for role, kv_role in ((Role.PREFILL, "kv_producer"), (Role.DECODE, "kv_consumer")):
        settings = parse(rendered(role, port=8123))
        assert (settings.model, settings.port, settings.gpus, settings.kv_role) == (MODEL, 8123, 8, kv_role)
        assert settings.ignored == ()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ([], 400, "the body must be a JSON object"),
        ({"prompt": "a", "model": "b"}, 404, "The model `b` does not exist."),
        ({"prompt": ""}, 400, "prompt must be one text"),
        ({"prompt": ["a", "b"]}, 400, "prompt must be one text"),
        ({"prompt": "a", "n": 2}, 400, "leave n out"),
        ({"prompt": "a", "max_tokens": 0}, 400, "at least 1, not 0"),
        ({"prompt": "a", "max_tokens": True}, 400, "at least 1, not True"),
        (
            {"prompt": [1] * 90, "max_tokens": 11},
            400,
            "maximum context length is 100 tokens; you asked for 101: 90 in the prompt",
        ),
        ({"prompt": [1] * 200}, 400, "maximum context length is 100 tokens"),
        ({"prompt": "a", "kv_transfer_params": {"do_remote_prefill": True, "remote_port": 1}}, 400, "without remote_engine_id"),
    ],
)
def test_a_bad_request_gets_one_sentence(body: Any, status: int, sentence: str) -> None:
    settings = parse(rendered(Role.DECODE, port=8000))
    with pytest.raises(Refusal) as refusal:
        read(body, chat=False, settings=settings, most_tokens=100)
    assert refusal.value.status == status and sentence in str(refusal.value)


@pytest.mark.parametrize("other", [["other/model"], [MODEL, "--block-size=32"], [MODEL, "--kv-cache-dtype", "fp8"]])
def test_a_kv_cache_of_another_layout_is_not_taken(other: list[str]) -> None:
    """As NIXL's handshake has it; what becomes of the request is kv_load_failure_policy's to say."""
    where = {"do_remote_prefill": True, "remote_block_ids": [0], "remote_host": "h", "remote_port": 1}
    theirs, mine = (f"{parse(line).kv_hash}:1" for line in (other, [MODEL, "--seed", "3"]))
    recomputes = parse(rendered(Role.DECODE, port=8000))
    fails = parse([MODEL, "--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}'])

    def asked(settings: EngineSettings, engine: str) -> bool:
        body = {"prompt": "a", "kv_transfer_params": {**where, "remote_engine_id": engine}}
        return read(body, chat=False, settings=settings, most_tokens=100).kv_arrives

    assert asked(recomputes, mine) and asked(fails, mine)
    assert not asked(recomputes, theirs), "the prompt is read again"
    with pytest.raises(Refusal, match="KV load failed") as refusal:
        asked(fails, theirs)
    assert refusal.value.status == 500


def test_a_chat_without_a_bound_gets_what_is_left() -> None:
    settings = parse([MODEL])
    ask = read({"messages": [{"role": "user", "content": "x" * 358}]}, chat=True, settings=settings, most_tokens=100)
    assert (ask.prompt_tokens, ask.output_tokens) == (90, 10)
    with pytest.raises(Refusal, match="the prompt alone has 101"):
        read({"messages": [{"role": "user", "content": "x" * 402}]}, chat=True, settings=settings, most_tokens=100)
