"""The fleet engine, run in parts: its tables grow by a row for every cap and clock that a server comes to have.

Theory. A server under a cap and a clock lock is a kind of its own. Caps are whole watts, so kinds are few and are kept;
nothing is interpolated, and a kind's watts are what the phase model says at that very cap. A change counts from the moment
it is told (`fleet.retable`), so energy stays the exact integral of the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_sim.fleet.kernel import TOO_SMALL, run_until
from splitwatt_sim.fleet.retable import retable
from splitwatt_sim.fleet.run import FleetError, FleetRun, check_fleet, result_of
from splitwatt_sim.fleet.state import DONE, Pool, ServerKind, new_fleet
from splitwatt_sim.plan.options import server_kind
from splitwatt_sim.power.setup import Server
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.traces.arrivals import Arrivals

MAX_KINDS: Final = 4_096
"""Rows of tables at most; a GPU has some 500 caps and every prompt length of the list has a column."""
MAX_RECORDED: Final = 20_000_000
"""Seconds times servers of a run."""
DRAIN_S: Final = 64
"""What the last requests may take before the record has to grow."""
KIND_COLUMNS: Final = ("prefill_s", "prefill_w", "decode_s", "decode_w", "kv_s", "idle_w", "kv_room")


class CrowdedError(Exception):
    """More hand-offs wait for a machine than there is room: the run has to begin again with more."""


class PowerEngine:
    """One run. Times are seconds since its beginning; machines are numbered like `servers`."""

    def __init__(
        self,
        model: str,
        servers: Sequence[Server],
        caps: Sequence[tuple[int, int]],
        arrivals: Arrivals,
        *,
        coming: int,
        catalogue: Catalogue | None = None,
    ) -> None:
        """`caps`: each server's cap in watts and clock lock in MHz (0: none) to begin with. Raises FleetError."""
        check_recorded(len(servers), arrivals)
        self._servers, self._arrivals = servers, arrivals
        self._model, self._catalogue = model, catalogue or Catalogue(model)
        self._longest = int(arrivals.prompt_tokens.max())
        self._rows: dict[tuple[str, int, int], int] = {}
        kinds: list[ServerKind] = []
        first: list[int] = []
        for server, (cap_w, clock_mhz) in zip(servers, caps, strict=True):
            key = (server.gpu, cap_w, clock_mhz)
            if key not in self._rows:
                self._rows[key] = len(kinds)
                kinds.append(self._kind(key))
            first.append(self._rows[key])
        pools = [Pool(server.role, kinds[row], 1) for server, row in zip(servers, first, strict=True)]
        check_fleet(pools, arrivals)
        roles = [server.role for server in servers]
        assert roles == sorted(roles), "servers stand in the order of the fleet's machines"
        self.fleet = new_fleet(
            [Pool(role, kinds[0], roles.count(role)) for role in sorted(set(roles))],
            arrival_s=arrivals.arrival_s,
            prompt=arrivals.prompt_tokens,
            output=arrivals.output_tokens,
            seconds=_seconds(arrivals),
            coming_capacity=coming,
        )
        self._kinds = 0
        for kind in kinds:
            self._add(kind)
        self.fleet.machines.kind = first
        self.fleet.machines.draw_w = self.fleet.idle_w[np.array(first)]
        self._at_s = 0.0

    def advance(self, at_s: float) -> None:
        """Run up to a moment. Raises CrowdedError, and FleetError for a run that does not end."""
        if at_s <= self._at_s:
            return
        recorded = self.fleet.power_w.shape[1]
        if at_s > recorded:
            if len(self._servers) * at_s > MAX_RECORDED:
                raise FleetError(
                    f"after {self._at_s:.0f} s of the run requests still wait: lower the rate, or raise limits or servers"
                )
            self.fleet = self.fleet._replace(power_w=np.pad(self.fleet.power_w, ((0, 0), (0, recorded))))
        if run_until(self.fleet, at_s) == TOO_SMALL:
            raise CrowdedError
        self._at_s = at_s

    def set_cap(self, machine: int, cap_w: int, clock_mhz: int) -> None:
        """From now on this server has this cap and clock lock (0: none)."""
        key = (self._servers[machine].gpu, cap_w, clock_mhz)
        row = self._rows.get(key)
        if row is None:
            kind = self._kind(key)
            row = self._rows[key] = self._reused(kind) if self._kinds == MAX_KINDS else self._add(kind)
        if row != self.fleet.machines.kind[machine]:
            retable(self.fleet, machine, row, self._at_s)

    def second_w(self, second: int) -> NDArray[np.float64]:
        """float64[M]: mean draw of each server in a second that is over."""
        return np.asarray(self.fleet.power_w[:, second])

    @property
    def finished(self) -> bool:
        return int(self.fleet.counters[DONE]) == len(self._arrivals)

    def result(self, seconds: int) -> FleetRun:
        self.fleet = self.fleet._replace(power_w=self.fleet.power_w[:, :seconds].copy())
        return result_of(self.fleet, self._arrivals)

    def _kind(self, key: tuple[str, int, int]) -> ServerKind:
        return server_kind(self._model, *key, longest_prompt=self._longest, catalogue=self._catalogue)

    def _add(self, kind: ServerKind) -> int:
        row = self._kinds
        if row >= len(self.fleet.kv_s) or row == 0:
            rows = max(8, 2 * row)
            self.fleet = self.fleet._replace(
                **{name: _room(getattr(self.fleet, name), rows) for name in (*KIND_COLUMNS, "hand_off")}
            )
        self._kinds += 1
        self._write(row, kind)
        return row

    def _write(self, row: int, kind: ServerKind) -> None:
        for name in KIND_COLUMNS:
            getattr(self.fleet, name)[row] = getattr(kind, name)
        self.fleet.hand_off[row] = (
            kind.hand_off_s_per_token,
            kind.hand_off_fixed_s,
            kind.overlap_from_tokens,
            kind.hand_off_latency_s,
        )

    def _reused(self, kind: ServerKind) -> int:
        """The row of a kind that no machine is of now."""
        used = set(self.fleet.machines.kind.tolist())
        key, row = next((key, row) for key, row in self._rows.items() if row not in used)
        del self._rows[key]
        self._write(row, kind)
        return row


def check_recorded(servers: int, arrivals: Arrivals) -> None:
    """Raises FleetError where the seconds of all servers would not fit memory; ask before anything is built."""
    if servers * _seconds(arrivals) > MAX_RECORDED:
        raise FleetError(
            f"{arrivals.arrival_s[-1]:.0f} s of {servers} servers are more than the {MAX_RECORDED} server seconds of one run "
            "under a power law: lower requests.seconds or servers"
        )


def _seconds(arrivals: Arrivals) -> int:
    """To the last arrival and a while on; it grows when that is not enough."""
    return int(arrivals.arrival_s[-1]) + DRAIN_S


def _room(table: NDArray[Any], rows: int) -> NDArray[Any]:
    """The table with more rows, the new ones empty."""
    wider = np.zeros((rows, *table.shape[1:]), table.dtype)
    wider[: len(table)] = table[:rows]
    return wider
