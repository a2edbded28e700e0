"""A connection to the real API server, for each test its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from splitwatt_client import Connection
from splitwatt_lab.controlplane import ControlPlane


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[Connection]:
    async with Connection(control_plane.kubeconfig) as connection:
        yield connection
