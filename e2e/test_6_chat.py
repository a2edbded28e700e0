"""The README's chat service on this ground: by emulated engines, and by real vLLM on CPUs, whose KV caches must move.

Real engines hold simulated GPUs, which are capped like others, and compute on CPUs. What breaks a transfer is done to them from
outside, and must be told within a minute; what they answer meanwhile is right, and says nothing.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from ground import chat, host, rack, rootfs, serving
from ground.site import Site
from splitwatt_core.names import LABEL_CLUSTER, LABEL_ROLE, LABEL_ROUTER
from splitwatt_core.serving.kv_proof import KvCounters, block_bytes
from splitwatt_lab.errors import LabError
from splitwatt_lab.judge import Judge
from splitwatt_operator.serving.engines import counters_of

NAME = "chat"
OBJECT = (f"ic/{NAME}", "-n", serving.NAMESPACE)
PROOF = "KVTransferVerified"
LOOSE_W = 2800
READY_S = 600.0
"""An engine on a CPU of its own is up after some 25 s; here they share two with all else."""
TOLD_S = 60.0
TOKENS = 12
BLOCK_TOKENS = 128
BLOCK_BYTES = block_bytes(layers=2, layer_block_bytes=64 * 1024)
SIDE_CHANNEL, HTTP = 5600, 8000
TABLE = ("ip", "broken")


@pytest.fixture
def alone(installed: Site) -> Iterator[Site]:
    """No other cluster, and watts for this one."""
    installed.judge()
    serving.make_namespace(installed)
    clear(installed)
    installed.limit(rack.NAME, rack.limit_w(installed, above_least_w=LOOSE_W))
    yield installed
    clear(installed)


def clear(site: Site) -> None:
    """The next cluster has the same name."""
    site.cluster.kubectl("delete", "ic", "--all", "-n", serving.NAMESPACE)
    end_pods(site)
    left = ("deployments,pods", "-n", serving.NAMESPACE, "-l", LABEL_CLUSTER)
    site.await_("nothing of a former cluster is left", lambda: not site.get(*left)["items"], timeout_s=60)


def end_pods(site: Site) -> None:
    """As a node that dies ends them: their hooks would wait for requests that nobody sends."""
    site.cluster.kubectl("delete", "pod", "-n", serving.NAMESPACE, "-l", LABEL_CLUSTER, "--grace-period=1", "--wait=false")


def test_the_example_with_emulated_engines_answers_curl(alone: Site, judged: Judge) -> None:
    documents = chat.emulated(alone)
    alone.apply(*documents[1:])
    answer = chat.curl(alone, model=documents[-1]["spec"]["model"]["name"], timeout_s=serving.READY_S)
    assert answer["usage"]["completion_tokens"] == 8 and answer["choices"][0]["text"]
    assert alone.condition(*OBJECT, condition=PROOF)["reason"] == "Emulated"


# ------------------------------------------------------------------------------------------------------------ real engines


class Engines:
    """The two engines of the cluster, and its way in."""

    def __init__(self, site: Site, cluster: Mapping[str, Any]) -> None:
        self.site, self.applied = site, cluster
        self.model = cluster["spec"]["model"]["name"]

    @property
    def way_in(self) -> str:
        """The router's pod: its Service has an address of the cluster's own."""
        (router,) = serving.living(self.site, f"{LABEL_ROUTER}={NAME}")
        return f"http://{router['status']['podIP']}:{HTTP}"

    @property
    def laid_over(self) -> Mapping[str, Any]:
        """The prefill engine's overlay, as it was applied."""
        (container,) = self.applied["spec"]["prefill"]["template"]["spec"]["containers"]
        return dict(container)

    def pod(self, role: str) -> Mapping[str, Any]:
        """Raises LabError while there is not exactly one."""
        found = serving.living(self.site, selector(role))
        if len(found) != 1:
            raise LabError(f"{len(found)} pods of {role} live")
        return found[0]

    def address(self, role: str) -> str:
        return str(self.pod(role)["status"]["podIP"])

    def url(self, role: str) -> str:
        return f"http://{self.address(role)}:{HTTP}"

    def counters(self) -> KvCounters:
        """The decode engine's."""
        return counters_of(httpx.get(f"{self.url('decode')}/metrics", trust_env=False, timeout=10).text)

    def counted_since(self, before: KvCounters) -> KvCounters:
        """Once it counts more prompt tokens. Raises LabError."""
        self.site.await_("the decode engine counts a request", lambda: self.counters().tokens > before.tokens, timeout_s=20)
        return self.counters()

    def ask(self, url: str, prompt: str) -> tuple[str, int]:
        """The text, and how many tokens the prompt has."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=60)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said["usage"]["completion_tokens"] == TOKENS
        return said["choices"][0]["text"], said["usage"]["prompt_tokens"]


def selector(role: str) -> str:
    return f"{LABEL_CLUSTER}={NAME},{LABEL_ROLE}={role}"


def prompt() -> str:
    """That nobody has sent before: some 450 tokens."""
    return " ".join(secrets.token_hex(2) for _ in range(160))


def told(site: Site, reason: str, *, since_s: float) -> float:
    """Seconds from the monotonic time `since_s` until the condition is False for this reason. Raises LabError."""

    def holds() -> bool:
        found = site.condition(*OBJECT, condition=PROOF)
        return (found.get("status"), found.get("reason")) == ("False", reason)

    site.await_(f"{PROOF} is False, {reason}", holds, timeout_s=since_s + TOLD_S - time.monotonic())
    took_s = time.monotonic() - since_s
    print(f"{reason} is told after {took_s:.1f} s: {site.condition(*OBJECT, condition=PROOF)['message']}")
    return took_s


def proven(site: Site) -> Mapping[str, Any]:
    site.await_ready(*OBJECT, timeout_s=READY_S)
    found = site.condition(*OBJECT, condition=PROOF)
    assert (found["status"], found["reason"]) == ("True", "Verified"), found
    return found


@pytest.fixture
def real(alone: Site) -> Iterator[Engines]:
    """One prefill and one decode engine of the example, which start."""
    site = alone
    documents = chat.on_cpus(
        image=site.cluster.image("engine"), router=site.cluster.image("router"), runtime_class=site.cluster.runtime_class
    )
    site.apply(*chat.volumes(site, serving.NAMESPACE))
    site.apply(*documents[1:])
    yield Engines(site, documents[-1])
    clear(site)
    site.cluster.kubectl("delete", "-n", serving.NAMESPACE, *(f"{kind}/{name}" for kind in ("pvc", "pv") for name in chat.CLAIMS))


@pytest.mark.timeout(1800)
def test_real_vllm_moves_kv_caches_and_what_breaks_it_is_told_within_a_minute(real: Engines, judged: Judge) -> None:
    site, begun_s = real.site, time.monotonic()

    # The side channel is refused from the start, and only that.
    site.await_("a prefill pod runs", lambda: bool(real.address("prefill")), timeout_s=READY_S)
    broken(real, "tcp", "dport", str(SIDE_CHANNEL))
    ready(real, "prefill", "decode")
    print(f"both engines are ready {time.monotonic() - begun_s:.1f} s after they were applied")
    told(site, "SideChannelClosed", since_s=time.monotonic())
    mended(real)
    begun_s = time.monotonic()
    answer = chat.curl(site, model=real.model, timeout_s=TOLD_S)
    print(f"Ready, and curl has its answer, {time.monotonic() - begun_s:.1f} s after the side channel was open")
    assert answer["usage"]["completion_tokens"] == 8
    moves(real)

    # Packets of KV caches are refused; HTTP and side channel work on. No pod changes: a client's request shows it.
    broken(real, "tcp", "dport", "!=", f"{{ {HTTP}, {SIDE_CHANNEL} }}")
    since_s = time.monotonic()
    text, _ = real.ask(real.way_in, asked := prompt())
    told(site, "DecodeRecomputes", since_s=since_s)
    assert text == real.ask(real.url("prefill"), asked)[0], "a request that was recomputed is answered as well"

    # A prefill engine that says it is another version: its KV caches are refused.
    args = real.pod("prefill")["spec"]["containers"][0]["args"]
    env = [each for each in real.laid_over["env"] if each["name"] != "PYTHONPATH"]
    overlay(real, env=[*env, {"name": "PYTHONPATH", "value": f"{chat.FOLDER}/later:{chat.FOLDER}/site"}])
    told(site, "VersionsDiffer", since_s=time.monotonic())

    # A prefill engine without a connector: every answer is well, and nothing moves.
    at = args.index("--kv-transfer-config")
    overlay(real, args=args[:at] + args[at + 2 :])
    told(site, "NoConnector", since_s=time.monotonic())
    assert site.condition(*OBJECT, condition="Ready")["status"] == "False"


# -------------------------------------------------------------------------------------------------- what is done and seen


def moves(real: Engines) -> None:
    """By the operator's proof, by the engine's counters for two prompts of ours, and by the text."""
    site = real.site
    message = proven(site)["message"]
    said = re.search(r"^(\d+) prompt tokens came .* in (\d+) bytes: (\d+) blocks of (\d+)\.", message)
    assert said is not None, message
    tokens, moved, blocks, each = map(int, said.groups())
    assert (blocks, each, moved) == (-(-tokens // BLOCK_TOKENS), BLOCK_BYTES, blocks * BLOCK_BYTES)
    print(message)
    texts = set()
    for asked in (prompt(), prompt()):
        before = real.counters()
        text, tokens = real.ask(real.way_in, asked)
        after = real.counted_since(before)
        assert after.moved_bytes is not None and before.moved_bytes is not None
        assert after.moved_bytes - before.moved_bytes == -(-tokens // BLOCK_TOKENS) * BLOCK_BYTES
        assert after.external_tokens - before.external_tokens == tokens
        assert (after.computed_tokens, after.failed) == (before.computed_tokens, before.failed)
        assert text == real.ask(real.url("prefill"), asked)[0], "one engine that does both writes the same"
        texts.add(text)
    assert len(texts) == 2, "another prompt's KV cache makes another text"
    held = {role: serving.gpus_of(site, NAME, role) for role in ("prefill", "decode")}
    assert [len(gpus) for by_node in held.values() for gpus in by_node.values()] == [1, 1]


def broken(real: Engines, *packets: str) -> None:
    """These that come to the prefill pod are refused, in its own network."""
    words = [*real.site.cluster.shell_of(real.address("prefill")), str(host.require("nft"))]
    hook = ("{", "type", "filter", "hook", "input", "priority", "0", ";", "}")
    for line in (
        ("table", *TABLE),
        ("chain", *TABLE, "in", *hook),
        ("rule", *TABLE, "in", "iifname", "!=", "lo", *packets, "reject", "with", "tcp", "reset"),
    ):
        rootfs.run([*words, "add", *line], what="nft")


def mended(real: Engines) -> None:
    words = [*real.site.cluster.shell_of(real.address("prefill")), str(host.require("nft"))]
    rootfs.run([*words, "delete", "table", *TABLE], what="nft")


def overlay(real: Engines, **fields: Any) -> None:
    """Over the prefill role's engine, beside what the example lays over it; waits until no former prefill pod is there and the
    engines are Ready, however many of them a rollout replaces."""
    begun_s, was = time.monotonic(), set(living(real.site, "prefill"))
    template = {"spec": {"containers": [{**real.laid_over, **fields}]}}
    patch = json.dumps({"spec": {"prefill": {"template": template}}})
    real.site.cluster.kubectl("patch", *OBJECT, "--type=merge", "-p", patch)
    real.site.await_("the former pod goes", lambda: not was & set(living(real.site, "prefill")), timeout_s=READY_S)
    end_leaving(real.site)
    ready(real, "prefill", "decode")
    print(f"the engines are Ready {time.monotonic() - begun_s:.1f} s after the overlay")


def living(site: Site, role: str) -> list[str]:
    return [each["metadata"]["name"] for each in serving.living(site, selector(role))]


def end_leaving(site: Site) -> None:
    """Those that are told to go, at once: their hooks would wait for requests that nobody sends."""
    pods = site.get("pods", "-n", serving.NAMESPACE, "-l", LABEL_CLUSTER)["items"]
    for name in (each["metadata"]["name"] for each in pods if "deletionTimestamp" in each["metadata"]):
        words = ("delete", "pod", name, "-n", serving.NAMESPACE, "--grace-period=1", "--ignore-not-found", "--wait=false")
        site.cluster.kubectl(*words)


def ready(real: Engines, *roles: str) -> None:
    def holds() -> bool:
        found = [condition for role in roles for condition in real.pod(role)["status"]["conditions"]]
        return [each["status"] for each in found if each["type"] == "Ready"] == ["True"] * len(roles)

    real.site.await_(f"the engine of {' and '.join(roles)} is Ready", holds, timeout_s=READY_S)
