"""Questions over plain HTTP, asked again and again while something starts: by one client, for making one reads every certificate
authority of the machine, 33 ms of a CPU each time, and asking takes 0.3 ms."""

from __future__ import annotations

from typing import Final

import httpx

HTTP: Final = httpx.Client(trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0))
"""Of any thread. It keeps no connection: a process that is asked may be another one at the next question."""
