"""The twin's JSON configuration, checked whole before anything starts. One sentence for each thing that is wrong.

    {"kubeconfig": FILE, "listen": "127.0.0.1:9400", "seed": 1, "duration_s": 240,
     "trace": FILE | null, "trace_unit": "s" | "ms" | null, "requests_per_s": 5.5, "rate": [[0, 1.0], [120, 3.0]],
     "clusters": {"serving/chat": {"share": 1.0}, "batch/summaries": {"share": 0.5}},
     "nodes": [{"name", "rack", "state_file", "pod_resources_socket", "boot_id_file"?}],
     "plant": {RackPlant's arguments},
     "meter": {"noise_percent": 0.5, "delay_s": 0.5}, "meter_faults": FILE | null, "results": FILE | null}

The load begins when a cluster first has a ready replica of both roles: time 0 of `rate` and `duration_s` is the moment
the first cluster of all is served. A cluster that is not named in `clusters` gets share 1.0, or 0.5 when its priority is
below High. The trace begins at its first row for a cluster with a share of 1.0 or more, elsewhere for each other one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from splitwatt_nvml_twin.plant import RackPlant
from splitwatt_shell.address import Address, AddressError, parse_address
from splitwatt_truth.trace import RateCurve, TraceError
from splitwatt_truth.trace_kinds import TraceUnit

from splitwatt_twin.requests import ClusterKey

MAX_NODES: Final = 256
MAX_CLUSTERS: Final = 100
MAX_REQUESTS_PER_S: Final = 1_000.0
LOW_PRIORITY_SHARE: Final = 0.5
MAX_SOCKET_PATH: Final = 107
"""Linux: sun_path holds 108 bytes with its end."""

_KEYS: Final = frozenset({
    "kubeconfig", "listen", "seed", "duration_s", "trace", "trace_unit", "requests_per_s", "rate", "clusters", "nodes",
    "plant", "meter", "meter_faults", "results",
})  # fmt: skip
_NODE_KEYS: Final = frozenset({"name", "rack", "state_file", "pod_resources_socket", "boot_id_file"})


class ConfigError(ValueError):
    """The configuration cannot be used; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    name: str
    rack: str
    state_file: Path
    pod_resources_socket: Path


@dataclass(frozen=True, slots=True)
class MeterConfig:
    """What a rack's meter adds to the truth: relative noise (one standard deviation) and age."""

    noise_percent: float = 0.5
    delay_s: float = 0.5


@dataclass(frozen=True, slots=True)
class TwinConfig:
    kubeconfig: Path
    listen: Address
    nodes: tuple[NodeConfig, ...]
    seed: int = 1
    duration_s: float = float("inf")
    trace: Path | None = None
    trace_unit: TraceUnit | None = None
    requests_per_s: float = 5.53
    rate: RateCurve = field(default_factory=RateCurve)
    shares: Mapping[ClusterKey, float] = field(default_factory=dict)
    plant: RackPlant = field(default_factory=RackPlant)
    meter: MeterConfig = field(default_factory=MeterConfig)
    meter_faults: Path | None = None
    """See `splitwatt_twin.meter_faults`; the file need not be there."""
    results: Path | None = None


def load(path: Path) -> TwinConfig:
    """Raises ConfigError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path} ({error}); pass --config FILE") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return parse(raw)


def parse(raw: Any) -> TwinConfig:
    """Raises ConfigError naming the key that is wrong."""
    _known(raw, _KEYS, "the configuration")
    try:
        listen = parse_address(_text(raw, "listen"), option="listen")
    except AddressError as error:
        raise ConfigError(str(error)) from error
    nodes = raw.get("nodes")
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES:
        raise ConfigError(f"nodes must be a list of 1 to {MAX_NODES} nodes")
    parsed = tuple(_node(node, f"nodes[{i}]") for i, node in enumerate(nodes))
    for what in ("name", "state_file", "pod_resources_socket"):
        values = [getattr(node, what) for node in parsed]
        twice = next((v for v in values if values.count(v) > 1), None)
        if twice is not None:
            raise ConfigError(f"two nodes have the same {what} {twice}; each needs its own")
    return TwinConfig(
        kubeconfig=Path(_text(raw, "kubeconfig")),
        listen=listen,
        nodes=parsed,
        seed=int(_number(raw, "seed", 1, low=0, high=2**31)),
        duration_s=_number(raw, "duration_s", float("inf"), low=0, high=float("inf")),
        trace=_path(raw, "trace"),
        trace_unit=_unit(raw.get("trace_unit")),
        requests_per_s=_number(raw, "requests_per_s", 5.53, low=0, high=MAX_REQUESTS_PER_S),
        rate=_curve(raw.get("rate", [[0, 1.0]])),
        shares=_shares(raw.get("clusters") or {}),
        plant=_plant(raw),
        meter=MeterConfig(**_numbers(raw, "meter", {"noise_percent": 50, "delay_s": 10})),
        meter_faults=_path(raw, "meter_faults"),
        results=_path(raw, "results"),
    )


def _known(raw: Any, keys: frozenset[str], where: str) -> None:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a JSON object, not {type(raw).__name__}")
    if unknown := sorted(set(raw) - keys):
        raise ConfigError(f"{where} has an unknown key {unknown[0]}; known are {', '.join(sorted(keys))}")


def _text(raw: Mapping[str, Any], key: str, where: str = "") -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}{key} must be given as text")
    return value


def _path(raw: Mapping[str, Any], key: str) -> Path | None:
    return None if raw.get(key) is None else Path(_text(raw, key))


def _number(raw: Mapping[str, Any], key: str, default: float, *, low: float, high: float, where: str = "") -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{where}{key} must be a number from {low:g} to {high:g}, not {value!r}")
    return value


def _numbers(raw: Mapping[str, Any], key: str, highs: Mapping[str, float]) -> dict[str, float]:
    inner = raw.get(key) or {}
    _known(inner, frozenset(highs), key)
    return {name: float(_number(inner, name, 0, low=0, high=highs[name], where=f"{key}.")) for name in inner}


def _plant(raw: Mapping[str, Any]) -> RackPlant:
    highs = {"loss_percent": 50.0, "base_node_w": 1e5, "slope": 1.0, "fixed_w": 1e6, "node_ceiling_w": 1e6}
    try:
        return RackPlant(**_numbers(raw, "plant", highs))
    except ValueError as error:
        raise ConfigError(f"plant: {error}") from error


def _node(raw: Any, where: str) -> NodeConfig:
    _known(raw, _NODE_KEYS, where)
    socket = _text(raw, "pod_resources_socket", f"{where}.").removeprefix("unix:")
    if len(socket.encode()) > MAX_SOCKET_PATH:
        raise ConfigError(f"{where}.pod_resources_socket is longer than {MAX_SOCKET_PATH} bytes; use a shorter folder")
    return NodeConfig(
        name=_text(raw, "name", f"{where}."),
        rack=_text(raw, "rack", f"{where}."),
        state_file=Path(_text(raw, "state_file", f"{where}.")),
        pod_resources_socket=Path(socket),
    )


def _unit(raw: Any) -> TraceUnit | None:
    try:
        return None if raw is None else TraceUnit(raw)
    except ValueError:
        raise ConfigError(f"trace_unit must be one of {', '.join(TraceUnit)}, or null, not {raw!r}") from None


def _curve(raw: Any) -> RateCurve:
    try:
        return RateCurve(tuple((float(t), float(m)) for t, m in raw))
    except TraceError as error:
        raise ConfigError(f"rate: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError("rate must be a list of [seconds, multiplier] pairs") from error


def _shares(raw: Any) -> dict[ClusterKey, float]:
    _known(raw, frozenset(raw) if isinstance(raw, dict) else frozenset(), "clusters")
    if len(raw) > MAX_CLUSTERS:
        raise ConfigError(f"clusters may name at most {MAX_CLUSTERS}")
    shares: dict[ClusterKey, float] = {}
    for name, body in raw.items():
        namespace, slash, cluster = name.partition("/")
        if not (namespace and slash and cluster):
            raise ConfigError(f'clusters: "{name}" must be "NAMESPACE/NAME"')
        _known(body, frozenset({"share"}), f"clusters.{name}")
        shares[ClusterKey(namespace, cluster)] = _number(body, "share", 1.0, low=0, high=100, where=f"clusters.{name}.")
    return shares
