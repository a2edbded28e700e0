"""`python -m splitwatt_lab.bench_standin --config FILE`: one process that answers an operator like a whole fleet's agents.

The operator, the API server and Prometheus around it are the real ones; only the agents are stood in for, because two
hundred of them do not fit on a small machine. Each node runs the core's own `Enforcer` (see `bench_node`); versions of the
NodePowers arrive by one watch for all nodes where real agents would hold one each; statuses are written as agents write
them: by server-side apply under the agents' field manager, bound to uid and resourceVersion, at once when something
changed and otherwise once a minute. /metrics has what a budget's meter and two hundred scraped agents would say.

    {"kubeconfig": FILE, "listen": "127.0.0.1:9400", "nodes": [{"name", "rack", "boot_id", "gpus"}]}
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from splitwatt_client import ApiError, Changed, Connection, Deleted, Interrupted, Object, Synced, watch
from splitwatt_client.resources import NODE_POWERS
from splitwatt_core.names import FIELD_MANAGER_AGENT, L_GPU, L_NODE, L_RACK, M_GPU_POWER_WATTS, M_RACK_POWER_WATTS
from splitwatt_core.protocol.contract import SIGN_OF_LIFE_S, GpuStatus, NodePower, node_power_from_wire, status_to_wire
from splitwatt_nvml_twin.plant import RackPlant
from splitwatt_shell.address import AddressError, parse_address
from splitwatt_shell.serve import ListenError, serve
from splitwatt_shell.supervise import first_to_end
from splitwatt_shell.waiting import woken

from splitwatt_lab.bench_node import StandInNode

log = logging.getLogger(__name__)

SPACING_S: Final = 0.05
RETRY_S: Final = 0.1
MAX_CONCURRENT_WRITES: Final = 32

_Told = tuple[str, tuple[GpuStatus, ...]]
"""What a status says: the object it was written for, and the GPUs' lines."""


class Writer:
    """Keeps one node's status true, until cancelled."""

    def __init__(self, node: StandInNode, connection: Connection, slots: asyncio.Semaphore) -> None:
        self.node = node
        self._connection = connection
        self._slots = slots
        self._wake = asyncio.Event()
        self._written: _Told | None = None
        self._written_s = float("-inf")

    def offer(self, raw: Object | None, *, consistent: bool) -> None:
        """A version of the object as the API server gave it; None: it is gone. Raises ContractError."""
        self.node.see(None if raw is None else node_power_from_wire(raw), time.monotonic(), consistent=consistent)
        self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            seen = self.node.observed
            due_s = self._due_s(seen) - time.monotonic()
            if seen is None or due_s > 0:
                await woken(self._wake, within_s=None if seen is None else due_s)
                continue
            try:
                async with self._slots:
                    await self._send(seen)
            except ApiError as failure:
                # A conflict, as a rule: the operator was quicker. Agents read afresh as well.
                log.info("status of %s not written: %s", self.node.name, failure)
                with suppress(ApiError):
                    self.offer(await self._connection.get(NODE_POWERS, self.node.name), consistent=True)
                await asyncio.sleep(RETRY_S * random.uniform(1.0, 2.0))

    def _told(self, seen: NodePower) -> _Told:
        return seen.uid, self.node.lines()

    def _due_s(self, seen: NodePower | None) -> float:
        changed = seen is not None and self._told(seen) != self._written
        return self._written_s + (SPACING_S if changed else SIGN_OF_LIFE_S)

    async def _send(self, seen: NodePower) -> None:
        told = self._told(seen)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._written_s = time.monotonic()
        stored = await self._connection.apply(
            {
                "apiVersion": NODE_POWERS.api_version,
                "kind": NODE_POWERS.kind,
                "metadata": {"name": seen.name, "uid": seen.uid, "resourceVersion": str(seen.resource_version)},
                "status": status_to_wire(self.node.status(said_at=now)),
            },
            field_manager=FIELD_MANAGER_AGENT,
            subresource="status",
            resource=NODE_POWERS,
        )
        self._written = told
        self.offer(stored, consistent=False)


async def follow(connection: Connection, writers: Mapping[str, Writer]) -> None:
    """Hand every version of every NodePower to its node, until cancelled."""
    async for event in watch(connection, NODE_POWERS):
        match event:
            case Synced(items=items):
                found = {item["metadata"]["name"]: item for item in items}
                for name, writer in writers.items():
                    writer.offer(found.get(name), consistent=True)
            case Changed(obj=obj) if obj["metadata"]["name"] in writers:
                writers[obj["metadata"]["name"]].offer(obj, consistent=False)
            case Deleted(obj=obj) if obj["metadata"]["name"] in writers:
                writers[obj["metadata"]["name"]].offer(None, consistent=False)
            case Interrupted(failure=failure):
                log.warning("NodePowers cannot be watched: %s", failure)


class FleetCollector(Collector):
    """What two hundred agents and twenty meters show, when Prometheus asks."""

    def __init__(self, racks: Mapping[str, Sequence[StandInNode]]) -> None:
        self._racks = racks
        self._plant = RackPlant()

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        power = GaugeMetricFamily(M_GPU_POWER_WATTS, "Instant power draw.", labels=(L_NODE, L_GPU))
        meter = GaugeMetricFamily(M_RACK_POWER_WATTS, "Draw at the rack's meter.", labels=(L_RACK,))
        now_s = time.monotonic()
        for rack, nodes in self._racks.items():
            sums_w = []
            for node in nodes:
                draws_w = node.draw_w(now_s)
                sums_w.append(sum(draws_w.values()))
                for uuid, watts in draws_w.items():
                    power.add_metric((node.name, uuid), watts)
            meter.add_metric((rack,), self._plant.true_w(sums_w))
        yield power
        yield meter


async def run(config: Mapping[str, Any]) -> None:
    """Until cancelled."""
    racks: dict[str, list[StandInNode]] = {}
    for row in config["nodes"]:
        racks.setdefault(row["rack"], []).append(StandInNode(row["name"], row["boot_id"], row["gpus"]))
    async with (
        serve(parse_address(config["listen"], option="listen"), FleetCollector(racks)),
        Connection(Path(config["kubeconfig"]), user_agent="splitwatt-bench") as connection,
    ):
        slots = asyncio.Semaphore(MAX_CONCURRENT_WRITES)
        writers = {node.name: Writer(node, connection, slots) for rack in racks.values() for node in rack}
        parts = {f"writer of {name}": writer.run() for name, writer in writers.items()}
        await first_to_end(watch=follow(connection, writers), **parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="splitwatt_lab.bench_standin", description="Answers like many agents.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(run(json.loads(args.config.read_text())))
    except KeyboardInterrupt:
        pass
    except (AddressError, ListenError, OSError) as error:
        sys.stderr.write(f"splitwatt_lab.bench_standin: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
