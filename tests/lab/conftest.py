"""Processes of one test: none of them outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_lab.processes import ProcessGroup


@pytest.fixture
def group(tmp_path: Path) -> Iterator[ProcessGroup]:
    with ProcessGroup(tmp_path / "logs") as group:
        yield group
