"""Where an agent's own connection is found, as its NodePower's status says.

What cannot be read is no endpoint: the connection is missed, and the caps and acknowledgements beside it count as ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_ADDRESS_CHARS: Final = 300
ADDRESS: Final = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")
SHA256: Final = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class StreamEndpoint:
    """HOST:PORT, and the SHA-256 of the agent's certificate (DER) in hexadecimal digits."""

    address: str
    sha256: str


def endpoint_to_wire(endpoint: StreamEndpoint) -> dict[str, str]:
    return {"address": endpoint.address, "certificateSHA256": endpoint.sha256}


def endpoint_from_wire(raw: Any) -> StreamEndpoint | None:
    if not isinstance(raw, Mapping):
        return None
    address, sha256 = raw.get("address"), raw.get("certificateSHA256")
    if not isinstance(address, str) or not isinstance(sha256, str) or len(address) > MAX_ADDRESS_CHARS:
        return None
    return StreamEndpoint(address, sha256) if ADDRESS.match(address) and SHA256.match(sha256) else None
