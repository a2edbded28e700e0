"""HOST:PORT, as command lines and configurations give it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_PORT = 65_535


class AddressError(ValueError):
    """One sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class Address:
    """`host` without brackets. `option` is what a person has to change when the address cannot be used."""

    host: str
    port: int
    option: str = "--listen"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, option: str = "--listen") -> Address:
    """`host:port`, or `[v6]:port`; port 0 is any free one. Raises AddressError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise AddressError(f"{option} must be HOST:PORT, such as 127.0.0.1:9400, not {text!r}")
    return Address(host, int(port), option)
