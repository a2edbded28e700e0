"""The twin's process: pods in, engines, load, GPU demand and metrics out; level with the clock, however late it wakes.

One loop ("pulse") brings the fleet to the present, at its next event but not more often than every `PULSE_S`, so that
GPU demand follows prefills of some tens of milliseconds. Every `SENSE_S` it reads all caps, samples the rack meters and
tends the load. Everything else (the watch of pods, HTTP, PodResources) runs between two pulses in the same thread.

On SIGTERM or SIGINT all demands become idle, results are closed, and a summary is written.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from splitwatt_client import ApiError, Changed, Connection, Deleted, Interrupted, Rejected, Synced, watch
from splitwatt_client.resources import INFERENCE_CLUSTERS, PODS
from splitwatt_core.clusters import PRIORITY_HIGH
from splitwatt_core.names import LABEL_CLUSTER
from splitwatt_shell.serve import serve
from splitwatt_shell.supervise import end_all, first_to_end, on_stop_signal
from splitwatt_truth.trace import TraceRow

from splitwatt_twin.config import LOW_PRIORITY_SHARE, TwinConfig
from splitwatt_twin.devices import NodeDevices
from splitwatt_twin.fleet import Engine, EngineFleet
from splitwatt_twin.gpus import NodeGpus
from splitwatt_twin.load import FULL_SHARE, Load
from splitwatt_twin.meter import RackMeter
from splitwatt_twin.meter_faults import MeterFaults
from splitwatt_twin.metrics import Snapshot, TwinCollector
from splitwatt_twin.podserver import PodResourcesServer
from splitwatt_twin.replicas import Node, Replicas
from splitwatt_twin.requests import ClusterKey
from splitwatt_twin.results import LoadResults

log = logging.getLogger(__name__)

PULSE_S: Final = 0.01
"""Shortest time between two pulses: 100 a second bound the cost of waking up."""
SENSE_S: Final = 0.1
"""Caps are read and meters sampled this often."""
FLUSH_S: Final = 1.0
LATE_WINDOW_S: Final = 10.0
LOOKUP_TRIES: Final = 5
LOOKUP_PAUSE_S: Final = 1.0


class Twin:
    """Everything of one run. `run` returns the summary."""

    def __init__(self, config: TwinConfig, rows: Sequence[TraceRow] | None) -> None:
        """Opens the GPUs' state and the results file. Raises OSError and UnknownGpuError."""
        self._config = config
        self._nodes: dict[str, Node] = {}
        for node in config.nodes:
            gpus = NodeGpus(node.state_file)
            self._nodes[node.name] = Node(gpus=gpus, devices=NodeDevices(gpus.uuids))
        now_s = time.monotonic()
        self._results = LoadResults(config.results, wall_offset_s=time.time() - now_s)
        self._touched: set[Engine] = set()
        self._fleet = EngineFleet(now_s=now_s, finished=self._results.add, touched=self._touched.add)
        self._replicas = Replicas(nodes=self._nodes, fleet=self._fleet, catch_up=self._catch_up)
        self._load = Load(config, fleet=self._fleet, rows=rows)
        self._plant = config.plant
        self._racks: dict[str, list[NodeGpus]] = defaultdict(list)
        for node in config.nodes:
            self._racks[node.rack].append(self._nodes[node.name].gpus)
        self._meter_faults = MeterFaults(config.meter_faults)
        self._meters = {
            rack: RackMeter(rack=rack, delay_s=config.meter.delay_s, noise_percent=config.meter.noise_percent, seed=config.seed)
            for rack in self._racks
        }
        self._asked: set[ClusterKey] = set()
        self._lookups: set[asyncio.Task[None]] = set()
        self._late_s = [0.0, 0.0]  # worst of the present and of the last window
        self._late_turn_s = now_s
        self._stop = asyncio.Event()

    # ----------------------------------------------------------------------------------------------------------- run

    async def run(self) -> dict[str, Any]:
        """Until `stop`. Raises ListenError or OSError for a taken address, ConfigurationError without a way to the API server."""
        async with AsyncExitStack() as stack:
            stack.callback(self._end)
            for node in self._config.nodes:
                server = PodResourcesServer(self._nodes[node.name].devices, node.pod_resources_socket)
                await server.start()
                stack.push_async_callback(server.stop)
            address = await stack.enter_async_context(serve(self._config.listen, TwinCollector(self._snapshot)))
            connection = await stack.enter_async_context(Connection(self._config.kubeconfig, user_agent="splitwatt-twin"))
            log.info("serving /metrics on %s for %d nodes", address, len(self._nodes))
            try:
                await first_to_end(stop=self._stop.wait(), pulse=self._pulse(connection), pods=self._watch_pods(connection))
            finally:
                await end_all(set(self._lookups))
        return self._results.summary(self._fleet.clusters)

    def stop(self) -> None:
        self._stop.set()

    def _end(self) -> None:
        self._replicas.rest()
        for node in self._nodes.values():
            node.gpus.flush()
            node.gpus.close()
        self._results.close()

    # --------------------------------------------------------------------------------------------------------- pulse

    def _catch_up(self) -> None:
        now_s = time.monotonic()
        while not self._fleet.run_until(now_s):
            pass

    async def _pulse(self, connection: Connection) -> None:
        sense_s = flush_s = 0.0
        while True:
            now_s = time.monotonic()
            self._note_lateness(now_s)
            level = self._fleet.run_until(now_s)
            if now_s >= sense_s:
                sense_s = now_s + SENSE_S
                self._sense(now_s, connection)
            self._drive()
            if now_s >= flush_s:
                flush_s = now_s + FLUSH_S
                self._results.flush()
            wake_s = min(self._fleet.next_s, sense_s) if level else now_s
            await asyncio.sleep(max(PULSE_S, wake_s - time.monotonic()) if level else 0)

    def _note_lateness(self, now_s: float) -> None:
        if now_s - self._late_turn_s > LATE_WINDOW_S:
            self._late_turn_s, self._late_s = now_s, [0.0, self._late_s[0]]
        self._late_s[0] = max(self._late_s[0], now_s - self._fleet.next_s)

    def _drive(self) -> None:
        """Puts the work that changed on the GPUs."""
        for engine in self._touched:
            self._replicas.drive(engine)
        self._touched.clear()
        for node in self._nodes.values():
            node.gpus.flush()

    def _sense(self, now_s: float, connection: Connection) -> None:
        for node in self._nodes.values():
            node.gpus.refresh()
        self._replicas.check_health()
        for rack, meter in self._meters.items():
            meter.sample(self._plant.true_w([gpus.power_w for gpus in self._racks[rack]]), now_s)
        present = self._replicas.clusters()
        for key in present - self._asked:
            self._asked.add(key)
            if key not in self._load.shares:
                task = asyncio.create_task(self._look_up_share(connection, key))
                self._lookups.add(task)
                task.add_done_callback(self._lookups.discard)
        self._load.tend(present, now_s)

    # ---------------------------------------------------------------------------------------------------- API server

    async def _watch_pods(self, connection: Connection) -> None:
        async for event in watch(connection, PODS, label_selector=LABEL_CLUSTER):
            match event:
                case Synced(items=items):
                    self._replicas.synced(items)
                case Changed(obj=pod):
                    self._replicas.changed(pod)
                case Deleted(obj=pod):
                    self._replicas.deleted(pod)
                case Interrupted(failure=failure):
                    log.warning("pods as last seen are kept: %s", failure)

    async def _look_up_share(self, connection: Connection, key: ClusterKey) -> None:
        """A cluster that the configuration does not name: its priority decides. No answer at all means the full rate."""
        share = FULL_SHARE
        for attempt in range(1, LOOKUP_TRIES + 1):
            try:
                found = await connection.get(INFERENCE_CLUSTERS, key.name, namespace=key.namespace)
                priority = ((found or {}).get("spec") or {}).get("priority", "High")
                if priority == "Low" or (isinstance(priority, int) and priority < PRIORITY_HIGH):
                    share = LOW_PRIORITY_SHARE
                break
            except ApiError as error:
                if isinstance(error, Rejected) or attempt == LOOKUP_TRIES:
                    log.warning("cannot read the priority of cluster %s (%s); it gets the full rate", key, error)
                    break
                await asyncio.sleep(LOOKUP_PAUSE_S)
        self._load.set_share(key, share)

    # ------------------------------------------------------------------------------------------------------- metrics

    def _snapshot(self) -> Snapshot:
        now_s = time.monotonic()
        readings = ((rack, meter.read_w(now_s)) for rack, meter in self._meters.items())
        return Snapshot(
            replicas=self._replicas.views(),
            clusters=list(self._fleet.clusters.values()),
            meters=self._meter_faults.shown({rack: power_w for rack, power_w in readings if power_w is not None}, time.time()),
            load_s=None if self._load.origin_s is None else now_s - self._load.origin_s,
            late_s=max(self._late_s),
        )


async def run(config: TwinConfig, rows: Sequence[TraceRow] | None) -> None:
    """One whole run, until a signal. Writes the summary to the log and beside the results."""
    twin = Twin(config, rows)
    on_stop_signal(twin.stop)
    summary = await twin.run()
    sys.stderr.write(json.dumps({"summary": summary}) + "\n")
    if config.results is not None:
        beside: Path = config.results.with_suffix(".summary.json")
        beside.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")  # noqa: ASYNC240 - the last act
