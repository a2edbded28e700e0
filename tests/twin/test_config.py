"""The twin's configuration: what it takes, and one sentence for everything it does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from splitwatt_truth.trace_kinds import TraceUnit
from splitwatt_twin.config import MAX_SOCKET_PATH, ConfigError, load, parse
from splitwatt_twin.requests import ClusterKey


def node(name: str = "n1", **more: Any) -> dict[str, Any]:
    return {"name": name, "rack": "a1", "state_file": f"{name}.state", "pod_resources_socket": f"unix:{name}.sock", **more}


def config(**more: Any) -> dict[str, Any]:
    return {"kubeconfig": "kubeconfig", "listen": "127.0.0.1:9400", "nodes": [node()], **more}


def test_a_whole_configuration_is_read(tmp_path: Path) -> None:
    raw = config(
        seed=3, duration_s=240, trace=None, requests_per_s=5.5, rate=[[0, 1.0], [120, 3.0]],
        nodes=[node("n1", boot_id_file="b"), node("n2")], plant={"loss_percent": 3.0}, meter={"delay_s": 1},
        results="r.jsonl", clusters={"serving/chat": {"share": 1.0}, "batch/sums": {"share": 0.25}},
    )  # fmt: skip
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(raw))
    made = load(path)
    assert (made.listen.host, made.listen.port, made.seed, made.duration_s, made.trace) == ("127.0.0.1", 9400, 3, 240, None)
    assert parse(config(trace="t.jsonl", trace_unit="ms")).trace_unit is TraceUnit.MILLISECONDS and made.trace_unit is None
    assert made.rate.at(60) == 2.0 and made.requests_per_s == 5.5
    assert [n.pod_resources_socket.name for n in made.nodes] == ["n1.sock", "n2.sock"]
    assert made.plant.loss_percent == 3.0 and made.plant.slope > 0 and made.meter.delay_s == 1
    assert made.shares == {ClusterKey("serving", "chat"): 1.0, ClusterKey("batch", "sums"): 0.25}


def test_defaults_are_the_conversation_trace_for_ever() -> None:
    made = parse(config())
    assert made.requests_per_s == 5.53 and made.duration_s == float("inf") and made.shares == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"speed": 1}, "unknown key speed"),
        ({"listen": "9400"}, "listen must be HOST:PORT"),
        ({"listen": "h:99999"}, "listen must be"),
        ({"kubeconfig": ""}, "kubeconfig must be given"),
        ({"nodes": []}, "nodes must be a list of 1 to"),
        ({"nodes": [node(), node()]}, "same name n1"),
        ({"nodes": [node(), node("n2", state_file="n1.state")]}, "same state_file"),
        ({"nodes": [node(colour="red")]}, r"nodes\[0\] has an unknown key colour"),
        ({"nodes": [{"name": "n1", "pod_resources_socket": "s"}]}, r"nodes\[0\].rack must be given"),
        ({"nodes": [node(pod_resources_socket="x" * (MAX_SOCKET_PATH + 1))]}, "use a shorter folder"),
        ({"requests_per_s": -1}, "requests_per_s must be a number from 0"),
        ({"requests_per_s": True}, "requests_per_s must be a number"),
        ({"rate": [[0, 1], [0, 2]]}, "rate: the times of a rate curve must rise"),
        ({"rate": "fast"}, "rate must be a list of"),
        ({"trace_unit": "min"}, "trace_unit must be one of s, ms, or null, not 'min'"),
        ({"meter": {"delay_s": 99}}, "meter.delay_s must be a number from 0 to 10"),
        ({"plant": {"loss": 1}}, "plant has an unknown key loss"),
        ({"clusters": {"chat": {}}}, 'clusters: "chat" must be "NAMESPACE/NAME"'),
        ({"clusters": {"a/b": {"share": -1}}}, "clusters.a/b.share must be a number"),
        ({"clusters": {"a/b": 1}}, "clusters.a/b must be a JSON object"),
    ],
)
def test_a_bad_configuration_gets_one_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as failure:
        parse(config(**change))
    assert "\n" not in str(failure.value)


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="must be a JSON object, not list"):
        parse([])
