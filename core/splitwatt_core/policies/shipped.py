"""The policies that a PowerBudget can name, with the settings they run with: in the operator, and in the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from splitwatt_core.policies.foresight import ForesightSettings
from splitwatt_core.policies.pacing import Pace
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.polca import Polca
from splitwatt_core.policies.signature import Policy
from splitwatt_core.policies.uniform import Uniform

POLICIES: Final[Mapping[str, Policy]] = {
    policy.name: policy for policy in (PhaseAware(pace=Pace(), foresight=ForesightSettings()), Uniform(), Polca())
}
"""By name, the default first."""
