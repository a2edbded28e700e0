"""All single scenes, by name. What each promises is what docs/safety.md says; `make faults` writes its table from here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from splitwatt_lab.faults.catalogue_meters import METERS
from splitwatt_lab.faults.catalogue_nodes import DISKS, NODE_FAULTS
from splitwatt_lab.faults.catalogue_objects import OBJECTS
from splitwatt_lab.faults.catalogue_processes import PROCESSES
from splitwatt_lab.faults.scene import Scene

SCENES: Final[Mapping[str, Scene]] = {scene.name: scene for scene in (*PROCESSES, *NODE_FAULTS, *DISKS, *OBJECTS, *METERS)}
