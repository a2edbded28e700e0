"""The demand contract: what a training job still needs, published by the job itself, at moments it chooses.

`GET /demand` answers one JSON object (`Demand.as_json`), `GET /metrics` the same numbers for Prometheus. docs/demand.md has the
schema. Demand of a pruned model only falls within one run; who reads it may take what was freed, and must not expect it back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from splitwatt_prune.cost import Cost

SCHEMA: Final = "splitwatt.io/demand/v1"
PORT: Final = 9464
PREFIX: Final = "splitwatt_training_"
_REQUEST_S: Final = 5.0
_HELP: Final[Mapping[str, str]] = {
    "generation": "Reconfigurations so far; grows by one with each.",
    "epoch": "Last epoch that ended.",
    "flops_per_sample": "Multiply-adds to train one sample.",
    "flops_ratio": "The same, as a share of the dense model's.",
    "inference_flops_ratio": "Multiply-adds of one prediction, as a share of the dense model's.",
    "parameters_ratio": "Parameters, as a share of the dense model's.",
    "activation_ratio": "Activation bytes per sample, as a share of the dense model's.",
    "static_bytes": "Weights, gradients and momentum, on each worker.",
    "activation_bytes_per_sample": "What layers and norms put out for one sample.",
    "allreduce_bytes": "What each worker sends per step.",
    "batch_per_worker": "Samples a step on each worker now.",
    "max_batch_per_gpu": "Largest mini-batch that a worker's memory holds.",
    "global_batch": "Samples a step over all workers.",
    "workers": "Workers of the job now.",
    "initial_workers": "Workers of the job when it began, dense.",
    "memory_bytes": "What a step may take on one worker.",
    "safe_point": "1 while workers may be taken away: a checkpoint of this generation is stored.",
    "shrink_budget": "Sum of lr*lambda/(1-momentum): below 1, hardly anything can be pruned.",
    "published_timestamp_seconds": "When the job said so, in seconds since 1970.",
}


@dataclass(frozen=True)
class Demand:
    """One saying of the job. Bytes and multiply-adds; ratios from 0 to 1 against the dense model."""

    generation: int
    epoch: int
    flops_per_sample: int
    flops_ratio: float
    inference_flops_ratio: float
    parameters_ratio: float
    activation_ratio: float
    static_bytes: int
    activation_bytes_per_sample: int
    allreduce_bytes: int
    batch_per_worker: int
    max_batch_per_gpu: int
    global_batch: int
    workers: int
    initial_workers: int
    memory_bytes: int
    safe_point: bool
    shrink_budget: float
    checkpoint_uri: str
    published_timestamp_seconds: float

    def as_json(self) -> Mapping[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def numbers(self) -> Mapping[str, float]:
        """Every number by its key: for gauges, and for `kubeflow.trainer.update_trainjob_status(metrics=...)` in a TrainJob."""
        return {name: float(getattr(self, name)) for name in _HELP}

    @classmethod
    def read(cls, text: str | bytes) -> Demand:
        """What a reader does. Raises ValueError with one sentence; keys that it does not know are passed over."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"a demand is one JSON object, and this is none: {error}") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"a demand says schema {SCHEMA!r}, and this does not")
        missing = [each.name for each in fields(cls) if each.name not in found]
        if missing:
            raise ValueError(f"the demand lacks {', '.join(missing)}")
        return cls(**{each.name: found[each.name] for each in fields(cls)})


def demand_of(
    cost: Cost,
    dense: Cost,
    *,
    generation: int,
    epoch: int,
    workers: int,
    initial_workers: int,
    batch_per_worker: int,
    memory_bytes: int,
    safe_point: bool,
    shrink_budget: float,
    checkpoint_uri: str = "",
    now: Callable[[], float] = time.time,
) -> Demand:
    """From a model's cost now and when it was dense. `memory_bytes`: what one worker may use. Raises ValueError."""
    if min(workers, initial_workers, batch_per_worker) < 1:
        raise ValueError(
            f"a job has a worker and a sample a step or more, not {workers}, {initial_workers} at first, and {batch_per_worker}"
        )
    return Demand(
        generation=generation,
        epoch=epoch,
        flops_per_sample=cost.training_flops,
        flops_ratio=cost.training_flops / dense.training_flops,
        inference_flops_ratio=cost.inference_flops / dense.inference_flops,
        parameters_ratio=cost.parameters / dense.parameters,
        activation_ratio=cost.activation_elements / dense.activation_elements,
        static_bytes=cost.static_bytes,
        activation_bytes_per_sample=cost.activation_bytes,
        allreduce_bytes=round(cost.allreduce_bytes(workers)),
        batch_per_worker=batch_per_worker,
        max_batch_per_gpu=max(0, (memory_bytes - cost.static_bytes) // max(1, cost.activation_bytes)),
        global_batch=workers * batch_per_worker,
        workers=workers,
        initial_workers=initial_workers,
        memory_bytes=memory_bytes,
        safe_point=safe_point,
        shrink_budget=shrink_budget,
        checkpoint_uri=checkpoint_uri,
        published_timestamp_seconds=now(),
    )


class DemandServer:
    """Serves the last demand on `port` (0: any that is free) until `close`. Rank 0 has one, no other."""

    def __init__(self, port: int = PORT, host: str = "") -> None:
        self._last: Demand | None = None
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._gauges = {name: Gauge(f"{PREFIX}{name}", text, registry=self._registry) for name, text in _HELP.items()}
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(self))
        except OSError as error:
            raise OSError(f"port {port} cannot be served ({error}): give another one, or 0 for any that is free") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="demand", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def publish(self, demand: Demand) -> None:
        with self._lock:
            self._last = demand
            for name, value in demand.numbers().items():
                self._gauges[name].set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> DemandServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answers(self, path: str) -> tuple[int, str, bytes]:
        """(status, content type, body) of a GET. Before the first demand both pages answer 503."""
        with self._lock:
            last, metrics = self._last, generate_latest(self._registry)
        if path not in ("/demand", "/metrics"):
            return 404, "text/plain", b"there are /demand and /metrics\n"
        if last is None:
            return 503, "text/plain", b"nothing was published yet\n"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, metrics
        return 200, "application/json", json.dumps(last.as_json()).encode()


def _handler(server: DemandServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S

        def do_GET(self) -> None:
            status, kind, body = server.answers(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class calls it so
            """Requests come every few seconds and are not worth a line."""

    return Handler


def metric_names() -> Iterator[str]:
    return (f"{PREFIX}{name}" for name in _HELP)
