"""Admission's site, put together from the view and the keeper's last step."""

from __future__ import annotations

from collections.abc import Mapping

from splitwatt_core.admission.site import Site
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.clusters import ClusterName

from splitwatt_operator.cluster.view import View


def site_of(view: View, keeper: Keeper, assumed: Mapping[str, str]) -> Site:
    """A copy: the plan is made in a thread, while the view goes on. `assumed` as in `Site`."""
    names = {ClusterName(*key): seen for key, seen in view.clusters.items()}
    budgets = {key.name: spec for key, spec in view.budgets.facts.items()}
    return Site(
        budgets=budgets,
        clusters={name: seen.fact for name, seen in names.items() if seen.fact is not None},
        leaving=frozenset(name for name, seen in names.items() if seen.terminating or view.owners.refusal(name)),
        owners=view.owners,
        pods={pod.name: pod for pod in view.pods.facts.values()},
        nodes={key.name: node for key, node in view.nodes.facts.items()},
        gpus={key.name: node_power.status.gpus for key, node_power in view.node_powers.facts.items()},
        profiles=view.profiles,
        floor_room_w={name: keeper.floor_room_w(name) for name in budgets},
        counted=keeper.floors_counted(),
        awaited=keeper.nodes_awaited(),
        assumed=assumed,
        spaces=view.spaces,
    )
