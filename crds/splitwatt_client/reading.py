"""What can be asked of an API server without changing anything. A part that takes a `Reader` cannot write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from splitwatt_client.resources import ResourceType

Object = dict[str, Any]
"""One API object as decoded JSON."""


@dataclass(frozen=True, slots=True)
class ObjectList:
    """A consistent list and the version it was taken at, from which a watch may go on."""

    items: tuple[Object, ...]
    resource_version: str


class Reader(Protocol):
    """The reading half of `Connection`; its docstrings hold."""

    async def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object | None: ...

    async def list(
        self,
        resource: ResourceType,
        *,
        namespace: str | None = None,
        name: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> ObjectList: ...

    async def list_metadata(
        self, resource: ResourceType, *, namespace: str | None = None, label_selector: str | None = None
    ) -> ObjectList: ...

    async def served(self, api_version: str) -> frozenset[str]: ...
