"""The way to an API server: single requests with honest outcomes, watches that resume, Leases held by compare-and-swap.

Imports nothing else of ours, so that every room, the agent first, can use it.
"""

from splitwatt_client.connection import Connection
from splitwatt_client.errors import ApiError, ConfigurationError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Object, ObjectList, Reader
from splitwatt_client.resources import ResourceType
from splitwatt_client.watching import Changed, Deleted, Interrupted, Synced, WatchEvent, watch

__all__ = [
    "ApiError", "Changed", "ConfigurationError", "Connection", "Deleted", "Interrupted", "Object", "ObjectList",
    "OutcomeUnknown", "Reader", "Rejected", "ResourceType", "Synced", "WatchEvent", "watch",
]  # fmt: skip
