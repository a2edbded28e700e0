"""What the API server holds at one moment, as far as this user may see it, for the pure modules to judge.

A kind that cannot be read is named in `unread` with the server's own sentence: no data is not an empty answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from splitwatt_api import convert
from splitwatt_client import Connection, Object, OutcomeUnknown, Rejected, ResourceType
from splitwatt_client.resources import (
    CUSTOM_RESOURCE_DEFINITIONS,
    DAEMON_SETS,
    DEPLOYMENTS,
    EVENTS_V1,
    INFERENCE_CLUSTERS,
    LEASES,
    NODE_POWERS,
    NODES,
    PODS,
    POWER_BUDGETS,
    POWER_PROFILES,
)
from splitwatt_core.names import API_GROUP, LABEL_CLUSTER

from splitwatt_cli.access import UnaskedError

AnyObject = TypeVar("AnyObject", bound=Mapping[str, Any])
NAMESPACE: Final = "splitwatt-system"
LEASE: Final = "splitwatt-operator"
CONTROLLER: Final = "splitwatt.io/operator"
"""reportingController of the operator's Events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSnapshot:
    """Raw objects. `pods`: of InferenceClusters, and all that are Pending. `own_pods`: in the operator's namespace.
    `deployments`, `daemon_sets`: there, too. `unread`: plural -> why it could not be read."""

    now_s: float
    namespace: str = NAMESPACE
    budgets: Sequence[Object] = ()
    node_powers: Sequence[Object] = ()
    clusters: Sequence[Object] = ()
    profiles: Sequence[Object] = ()
    nodes: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    own_pods: Sequence[Object] = ()
    deployments: Sequence[Object] = ()
    daemon_sets: Sequence[Object] = ()
    events: Sequence[Object] = ()
    definitions: Sequence[Object] = ()
    lease: Object | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        """True where nobody may tell."""
        return bool(self.definitions) or CUSTOM_RESOURCE_DEFINITIONS.plural in self.unread


def named(objects: Sequence[AnyObject]) -> dict[str, AnyObject]:
    return {obj["metadata"]["name"]: obj for obj in objects}


def unix_s(timestamp: str | None) -> float | None:
    """RFC 3339 to Unix seconds; None where nothing, or nothing readable, is written."""
    try:
        return convert.unix_s(timestamp.replace("Z", "+00:00")) if timestamp else None
    except ValueError:
        return None


async def take(connection: Connection, *, namespace: str | None) -> SiteSnapshot:
    """`namespace`: the operator's, None: look for its Lease. Raises OutcomeUnknown where the API server does not answer."""
    unread: dict[str, str] = {}

    async def listed(
        resource: ResourceType, *, within: str | None = None, labels: str | None = None, fields: str | None = None
    ) -> tuple[Object, ...]:
        try:
            found = await connection.list(resource, namespace=within, label_selector=labels, field_selector=fields)
        except Rejected as refusal:
            unread[resource.plural] = refusal.message
            return ()
        except OutcomeUnknown as failure:
            if resource is LEASES:
                raise  # the first question of all: nobody answers
            unread[resource.plural] = str(failure)  # one kind whose definition is just written anew says 429
            return ()
        return found.items

    leases = await listed(LEASES, within=namespace, fields=f"metadata.name={LEASE}")
    lease = max(leases, key=lambda obj: str((obj.get("spec") or {}).get("renewTime") or ""), default=None)
    home = namespace or (NAMESPACE if lease is None else lease["metadata"]["namespace"])
    (
        budgets, node_powers, clusters, profiles, nodes, ours, pending, own, deployments, daemon_sets, events, definitions
    ) = await asyncio.gather(
        listed(POWER_BUDGETS),
        listed(NODE_POWERS),
        listed(INFERENCE_CLUSTERS),
        listed(POWER_PROFILES),
        listed(NODES),
        listed(PODS, labels=LABEL_CLUSTER),
        listed(PODS, fields="status.phase=Pending"),
        listed(PODS, within=home),
        listed(DEPLOYMENTS, within=home),
        listed(DAEMON_SETS, within=home),
        listed(EVENTS_V1, fields=f"reportingController={CONTROLLER}"),
        listed(CUSTOM_RESOURCE_DEFINITIONS),
    )  # fmt: skip
    pods = {pod["metadata"]["uid"]: pod for pod in (*ours, *pending)}
    return SiteSnapshot(
        now_s=time.time(),
        namespace=home,
        budgets=budgets,
        node_powers=node_powers,
        clusters=clusters,
        profiles=profiles,
        nodes=nodes,
        pods=tuple(pods.values()),
        own_pods=own,
        deployments=deployments,
        daemon_sets=daemon_sets,
        events=sorted(events, key=lambda event: str(event.get("eventTime") or "")),
        definitions=[obj for obj in definitions if obj["spec"].get("group") == API_GROUP],
        lease=lease,
        unread=unread,
    )


async def take_installed(connection: Connection, *, namespace: str | None) -> SiteSnapshot:
    """For commands that have nothing to say before an installation. Raises UnaskedError there, else as `take`."""
    seen = await take(connection, namespace=namespace)
    if not seen.installed:
        raise UnaskedError(
            "Splitwatt is not installed on this cluster, for none of its CRDs is there; begin with splitwatt doctor"
        )
    return seen
