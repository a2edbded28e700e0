"""The bootstrap of the Envoy beside llm-d's endpoint picker: what it asks by ext_proc, and where it then sends each request.

A request that the picker gives no answer to fails. Passed on without one it would go to nowhere: its only way out is the address
that the picker writes into a header.

Source: llm-d/llm-d-router v0.10.0, config/charts/llm-d-router-standalone/values.yaml (router.proxy.presets.envoy); what differs
is the listener's port, `failure_mode_allow`, and access logs, which are left out.
"""

from __future__ import annotations

from typing import Any, Final

ADMIN_PORT: Final = 19000
"""On loopback."""
READY_PORT: Final = 19001
DESTINATION_HEADER: Final = "x-gateway-destination-endpoint"
A_DAY: Final = "86400s"
_TYPES: Final = "type.googleapis.com/envoy"
_STREAM_BYTES: Final = 65_536
_CONNECTION_BYTES: Final = 1_048_576
_MANY: Final = 40_000


def bootstrap(*, port: int, picker_port: int) -> dict[str, Any]:
    """Clients at `port`, the picker on loopback at `picker_port`."""
    return {
        "admin": {"address": _address("127.0.0.1", ADMIN_PORT)},
        "static_resources": {
            "listeners": [_listener("ready", READY_PORT, _ready()), _listener("engines", port, _routed(), buffer_bytes=32_768)],
            "clusters": [_stats(), _destination(), _picker(picker_port)],
        },
    }


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"{_TYPES}.{name}", **fields}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _listener(name: str, port: int, manager: dict[str, Any], *, buffer_bytes: int | None = None) -> dict[str, Any]:
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "name": name,
        "address": _address("0.0.0.0", port),
        "additional_addresses": [{"address": _address("::", port)}],
        **({} if buffer_bytes is None else {"per_connection_buffer_limit_bytes": buffer_bytes}),
        "filter_chains": [{"filters": filters}],
    }


def _manager(name: str, route: dict[str, Any], filters: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    hosts = [{"name": name, "domains": ["*"], "routes": [route]}]
    return _typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config={"name": name, "virtual_hosts": hosts},
        http_filters=filters,
        **more,
    )


def _router(**fields: Any) -> dict[str, Any]:
    return {"name": "envoy.filters.http.router", "typed_config": _typed("extensions.filters.http.router.v3.Router", **fields)}


def _ready() -> dict[str, Any]:
    """/ready for the kubelet, /stats/prometheus for whoever asks."""
    health = {
        "name": "envoy.filters.http.health_check",
        "typed_config": _typed(
            "extensions.filters.http.health_check.v3.HealthCheck",
            pass_through_mode=False,
            headers=[{"name": ":path", "string_match": {"exact": "/ready"}}],
        ),
    }
    route = {"match": {"prefix": "/stats/prometheus"}, "route": {"cluster": "prometheus_stats"}}
    return _manager("ready", route, [health, _router()])


def _routed() -> dict[str, Any]:
    picked = {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": _typed(
            "extensions.filters.http.ext_proc.v3.ExternalProcessor",
            failure_mode_allow=False,
            grpc_service={"envoy_grpc": {"cluster_name": "ext_proc", "authority": "localhost"}, "timeout": "10s"},
            processing_mode={
                "request_header_mode": "SEND",
                "response_header_mode": "SEND",
                "request_body_mode": "FULL_DUPLEX_STREAMED",
                "response_body_mode": "FULL_DUPLEX_STREAMED",
                "request_trailer_mode": "SEND",
                "response_trailer_mode": "SEND",
            },
            message_timeout="1000s",
        ),
    }
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "original_destination_cluster",
            "timeout": A_DAY,
            "idle_timeout": A_DAY,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
        },
        "typed_per_filter_config": {"envoy.filters.http.ext_proc": _typed("config.route.v3.FilterConfig", config={})},
    }
    return _manager(
        "engines",
        route,
        [picked, _router(suppress_envoy_headers=True)],
        http2_protocol_options={"max_concurrent_streams": 100, **_windows()},
        use_remote_address=True,
        normalize_path=True,
        merge_slashes=True,
        server_header_transformation="PASS_THROUGH",
        common_http_protocol_options={"headers_with_underscores_action": "REJECT_REQUEST"},
        path_with_escaped_slashes_action="UNESCAPE_AND_REDIRECT",
    )


def _windows() -> dict[str, int]:
    return {"initial_stream_window_size": _STREAM_BYTES, "initial_connection_window_size": _CONNECTION_BYTES}


def _breakers(**more: int) -> dict[str, Any]:
    return {"thresholds": [{"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, **more}]}


def _endpoints(name: str, port: int) -> dict[str, Any]:
    return {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address("127.0.0.1", port)}}]}],
    }


def _stats() -> dict[str, Any]:
    name = "prometheus_stats"
    return {"name": name, "type": "STATIC", "connect_timeout": "0.250s", "load_assignment": _endpoints(name, ADMIN_PORT)}


def _destination() -> dict[str, Any]:
    """Wherever the picker's header says."""
    return {
        "name": "original_destination_cluster",
        "type": "ORIGINAL_DST",
        "connect_timeout": "1000s",
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": _breakers(),
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION_HEADER},
    }


def _picker(port: int) -> dict[str, Any]:
    """By TLS, for the picker serves Gateways at the same port; its certificate is made at each start and known to nobody."""
    tls = _typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context={"validation_context": {}})
    http2 = _typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": _windows()},
    )
    return {
        "name": "ext_proc",
        "type": "STATIC",
        "connect_timeout": A_DAY,
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": _breakers(max_retries=1024),
        "health_checks": [
            {
                "timeout": "2s",
                "interval": "10s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 2,
                "reuse_connection": True,
                "grpc_health_check": {"service_name": "envoy.service.ext_proc.v3.ExternalProcessor"},
                "tls_options": {"alpn_protocols": ["h2"]},
            }
        ],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": _endpoints("ext_proc", port),
    }
