"""What the doctor's checks are told: one frozen value, so that every check is a pure function over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitwatt_cli.snapshot import SiteSnapshot


@dataclass(frozen=True, slots=True)
class MeterAnswer:
    """What Prometheus says of one budget's selector: its sum in the meter's own unit, how many series, and how old the oldest
    sample is. None: no series. `problem`: why there is no answer at all."""

    value: float | None = None
    series: int = 0
    age_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Right:
    """What an account must be allowed. `namespace` "": everywhere. `name` "": any."""

    account: str
    verb: str
    group: str
    resource: str
    name: str = ""
    namespace: str = ""

    @property
    def words(self) -> str:
        what = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {what}{f' {self.name}' if self.name else ''}"


@dataclass(frozen=True, slots=True)
class Clock:
    """Another machine's clock against this one's. `ahead_s`: by how much; `slack_s`: half of how long the question took."""

    ahead_s: float
    slack_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryFacts:
    """Answers of Prometheus, ages by its own clock. By node where a node is named.

    `age_s`: of the newest sample of each agent. `down`: nodes whose agent's target does not answer its scrape. `gap_s`: the usual
    time between two samples. `draw_w`: GPU watts. `closed`: nodes whose agent reads no PodResources. `meters`: by budget.
    `engines`: (namespace, cluster) of which latencies are told, with labels that they are asked by; `pods`: pods with any engine
    metrics. `problem`: why there are no answers."""

    where: str = ""
    clock: Clock | None = None
    age_s: Mapping[str, float] = field(default_factory=dict)
    down: frozenset[str] = frozenset()
    gap_s: Mapping[str, float] = field(default_factory=dict)
    draw_w: Mapping[str, float] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    meters: Mapping[str, MeterAnswer] = field(default_factory=dict)
    engines: frozenset[tuple[str, str]] = frozenset()
    pods: frozenset[tuple[str, str]] = frozenset()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """`local_s`: this machine's clock. `server`: the API server's, None where it did not say. `refused`: rights that
    an account lacks. `rights_problem`: why nobody could tell. `breakers_w`: rating by budget."""

    seen: SiteSnapshot
    telemetry: TelemetryFacts
    version: str = ""
    server: Clock | None = None
    local_s: float = 0.0
    refused: Sequence[Right] = ()
    rights_problem: str = ""
    breakers_w: Mapping[str, int] = field(default_factory=dict)

    @property
    def server_s(self) -> float:
        """By the API server's clock, as far as it is known."""
        return self.local_s + (0.0 if self.server is None else self.server.ahead_s)

    @property
    def installed(self) -> bool:
        return self.seen.installed
