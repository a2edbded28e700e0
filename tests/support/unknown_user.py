"""Programs run as a container runs them: as a user that /etc/passwd does not know, with the environment that runc gives."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from typing import Final

import pytest

UID: Final = 65532
_NAMES: Final = ("USER", "LOGNAME", "LNAME", "USERNAME")
"""Where Python looks for the user's name before it asks for the passwd entry."""


def as_unknown_user() -> Sequence[str]:
    """What to put before a command. Files that are ours are the user's: a user namespace maps us to UID. Skips the test where
    none can be made."""
    command = _unshare()
    if command is None:
        pytest.skip("no user namespace can be made here, so nobody is unknown")
    return ["env", *(f"--unset={name}" for name in _NAMES), "HOME=/", *command]


@cache
def _unshare() -> Sequence[str] | None:
    if shutil.which("unshare") is None:
        return None
    command = ["unshare", "--user", f"--map-user={UID}", f"--map-group={UID}"]
    return command if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0 else None
