"""Watts of rack a1 as the README declares it, for scenarios that choose limits: 4 % losses, 2800 W for each node, 600 W fixed."""

from __future__ import annotations

from typing import Final

from ground.site import Site

NAME: Final = "rack-a1"
NODE_W: Final = 2800
FIXED_W: Final = 600
LOSSES: Final = 1.04
LEAST_W: Final = 200
"""Minimum cap of an H100, which the budget's policy gives to GPUs that nobody holds."""
DEFAULT_W: Final = 700
GPUS: Final = 8


def may_draw_w(site: Site) -> float:
    """By the limits that the GPUs enforce."""
    nodes = site.metering.meters.racks["a1"]
    return sum(sum(site.enforced_w()[node]) for node in nodes) * LOSSES + NODE_W * len(nodes) + FIXED_W


def limit_w(site: Site, *, above_least_w: int) -> int:
    """A limit that leaves so many GPU watts above the least of every GPU."""
    nodes = len(site.cluster.nodes())
    return round((nodes * GPUS * LEAST_W + above_least_w) * LOSSES) + NODE_W * nodes + FIXED_W
